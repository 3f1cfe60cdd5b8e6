"""What is exported: a run's model from uint8 pictures to calibrated probabilities."""

import copy
import math

import torch
from torch import Tensor, nn

from pipeline.data.tta import Kind
from pipeline.evaluation.unknown_scores import Score
from pipeline.export.known_scores import KnownScore
from pipeline.inference.predict import last_layer_inputs
from pipeline.models.classifier import Classifier

INPUT = "images"
LOGITS, PROBABILITIES, KNOWN_SCORE = "logits", "probabilities", "known_score"


class ExportedNetwork(nn.Module):
    """uint8 [B, 3, P, P] -> logits and probabilities, float32 [B, C], and perhaps the known score, float64 [B].

    With the mirror image (`eval.tta=flip`) the logits are the logarithm of the mean probability, as in evaluation.
    """

    def __init__(self, model: Classifier, temperature: float, tta: Kind, score: Score | None) -> None:
        """score: of how well a picture fits the known classes; None: the run has no threshold of it."""
        super().__init__()
        self.model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
        self.temperature = temperature
        self.mirrors = tta == "flip"
        self.known_score = None if score is None else KnownScore(score)

    @property
    def output_names(self) -> list[str]:
        """In the order of the outputs."""
        return [LOGITS, PROBABILITIES, *([] if self.known_score is None else [KNOWN_SCORE])]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, features = self._outputs(images)
        if self.mirrors:
            mirrored, mirrored_features = self._outputs(images.flip(3))
            both = torch.stack([logits.log_softmax(1), mirrored.log_softmax(1)])
            logits, features = both.logsumexp(0) - math.log(2), (features + mirrored_features) / 2
        probabilities = (logits / self.temperature).softmax(1)
        if self.known_score is None:
            return logits, probabilities
        return logits, probabilities, self.known_score(logits, features)

    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and features [B, D]."""
        with last_layer_inputs(self.model) as inputs:
            logits: Tensor = self.model(images)
        return logits, inputs[0]
