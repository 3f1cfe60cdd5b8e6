"""What is exported: a run's model from uint8 pictures to calibrated probabilities."""

import contextlib
import copy
import math

import torch
from torch import Tensor, nn

from pipeline.answering.unknown_scores import Score
from pipeline.data.tta import Kind
from pipeline.export import heat_maps
from pipeline.export.known_scores import KnownScore
from pipeline.inference.predict import last_layer_inputs
from pipeline.models.classifier import Classifier

INPUT = "images"
LOGITS, PROBABILITIES, KNOWN_SCORE, HEAT_MAPS = "logits", "probabilities", "known_score", "heat_maps"


class ExportedNetwork(nn.Module):
    """uint8 [B, 3, P, P] -> logits and probabilities, float32 [B, C], and what else the run has.

    With the mirror image (`eval.tta=flip`) the logits are the logarithm of the mean probability, as in evaluation.
    The known score is float64 [B]. Heat maps, float32 [B, K, h, w], are of the K most likely classes, best first: what
    each position adds to the logit, where it adds something, else 0; of two views their mean.
    """

    def __init__(
        self, model: Classifier, temperature: float, tta: Kind, score: Score | None, *, maps: bool = False
    ) -> None:
        """score: of how well a picture fits the known classes; None: the run has no threshold of it. maps: give them."""
        super().__init__()
        self.model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
        self.temperature = temperature
        self.mirrors = tta == "flip"
        self.known_score = None if score is None else KnownScore(score)
        self.maps = maps

    @property
    def output_names(self) -> list[str]:
        """In the order of the outputs."""
        said = [LOGITS, PROBABILITIES]
        if self.known_score is not None:
            said.append(KNOWN_SCORE)
        return [*said, HEAT_MAPS] if self.maps else said

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, features, last_maps = self._outputs(images)
        if self.mirrors:
            mirrored, mirrored_features, mirrored_maps = self._outputs(images.flip(3))
            both = torch.stack([logits.log_softmax(1), mirrored.log_softmax(1)])
            logits, features = both.logsumexp(0) - math.log(2), (features + mirrored_features) / 2
            last_maps += [one.flip(3) for one in mirrored_maps]
        outputs = [logits, (logits / self.temperature).softmax(1)]
        if self.known_score is not None:
            outputs.append(self.known_score(logits, features))
        if self.maps:
            labels = logits.topk(min(heat_maps.MOST_CLASSES, logits.shape[1])).indices
            added = [heat_maps.maps(self.model, one, labels) for one in last_maps]
            outputs.append(torch.stack(added).mean(0).clamp(min=0))
        return tuple(outputs)

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits [B, C], features [B, D], and the last feature map [B, D, h, w], where maps are wanted."""
        with contextlib.ExitStack() as watched:
            inputs = watched.enter_context(last_layer_inputs(self.model))
            last_maps = watched.enter_context(heat_maps.last_feature_maps(self.model)) if self.maps else []
            logits: Tensor = self.model(images)
        return logits, inputs[0], last_maps
