"""Whether an exported graph answers as the trained model does, picture by picture."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.answering.unknown_scores import Score
from pipeline.common import seeding
from pipeline.data import pictures
from pipeline.data.loader import Batch
from pipeline.data.sources.drawn_birds import bird
from pipeline.data.sources.drawn_birds.species import species_list
from pipeline.data.tta import Kind
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation import calibration
from pipeline.export import heat_maps
from pipeline.export.network import HEAT_MAPS, KNOWN_SCORE, LOGITS, PROBABILITIES
from pipeline.export.onnx_file import Graph, Images, Outputs
from pipeline.inference.predict import Network, average_views, predict_batches
from pipeline.models.classifier import Classifier

TOLERANCE = 1e-5
"""largest difference that passes, relative to the units of `Agreement`"""
MAPS_TOLERANCE = 1e-4
"""the same of heat maps, each value of which is one position's part of a logit, with less to even rounding out"""
ALLOWED = {LOGITS: TOLERANCE, PROBABILITIES: TOLERANCE, KNOWN_SCORE: TOLERANCE, HEAT_MAPS: MAPS_TOLERANCE}
BATCHES = 1, 2, 3, 64
SPECIES = 24


@dataclass(frozen=True)
class Trained:
    """A run's model in the form in which `eval` and `predict` compute it on a CPU, in fp32.

    mapped: the model whose class activation maps the graph gives; None: it gives none.
    """

    network: Network
    temperature: float
    tta: Kind
    score: Score | None
    mapped: Classifier | None = None

    def outputs(self, images: Images) -> Outputs:
        """uint8 [B, 3, P, P] -> what the graph has to give, by the names of its outputs."""
        rows = torch.arange(len(images))
        views = [images, images[..., ::-1]] if self.tta == "flip" else [images]
        batches = [Batch(torch.from_numpy(np.ascontiguousarray(view)), rows, rows) for view in views]
        predicted = [
            predict_batches(
                self.network, [batch], rows.numpy(), "fp32", Ranks.single(torch.device("cpu")), features=True
            )
            for batch in batches
        ]
        one = average_views(predicted)
        probabilities = np.exp(calibration.log_probabilities(one.logits, self.temperature))
        outputs: Outputs = {LOGITS: one.logits, PROBABILITIES: probabilities}
        return (
            outputs
            if self.score is None
            else outputs | {KNOWN_SCORE: self.score.of(one.logits, one.features)}
        )

    def heat_maps(self, images: Images, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """uint8 [B, 3, P, P], int64 [B, K] -> what the graph has to give for these classes, float32 [B, K, h, w]."""
        assert self.mapped is not None, "it gives none"
        one, of = torch.from_numpy(images), torch.from_numpy(labels)
        with torch.no_grad():
            added = self.mapped.class_activations(one, of)
            if self.tta == "flip":
                added = (added + self.mapped.class_activations(one.flip(3), of).flip(3)) / 2
        return np.asarray(added.clamp(min=0).numpy())


@dataclass(frozen=True)
class Agreement:
    """Of n images: how many have the label of the trained model, and the largest differences.

    logits, known_score, heat_maps: relative to the largest one of the batch. probabilities: relative to the largest
    logit over the temperature, or to 1 if that is less: probabilities differ by at most half as much as logits.
    largest_logit: of the trained model.
    """

    images: int
    labels_equal: int
    logits: float
    probabilities: float
    known_score: float
    heat_maps: float
    largest_logit: float

    @property
    def faults(self) -> list[str]:
        """What does not agree; empty: everything does."""
        said = []
        if self.labels_equal < self.images:
            said.append(f"{self.images - self.labels_equal:,} of {self.images:,} labels differ")
        for name, allowed in ALLOWED.items():
            if not (difference := getattr(self, name)) <= allowed:
                said.append(f"{name} differ by {difference:.2g}, where {allowed:g} is allowed")
        return said


def compare(trained: Trained, graph: Graph, batches: Iterable[Images]) -> Agreement:
    """Compare a graph with the trained model; batches: uint8 [B, 3, P, P] each.

    Raises:
        GraphFault: ONNX Runtime fails on a batch.
    """
    images, equal, largest = 0, 0, 0.0
    worst = dict.fromkeys(ALLOWED, 0.0)
    for batch in batches:
        wanted, found = trained.outputs(batch), graph.outputs(batch)
        if (
            trained.mapped is not None
        ):  # of the classes that the graph finds: near ties may be in another order
            order = np.argsort(-found[LOGITS], axis=1, kind="stable")
            wanted[HEAT_MAPS] = trained.heat_maps(batch, order[:, : heat_maps.MOST_CLASSES])
        images += len(batch)
        equal += int((found[LOGITS].argmax(1) == wanted[LOGITS].argmax(1)).sum())
        largest = max(largest, float(np.abs(wanted[LOGITS]).max()))
        for name, values in wanted.items():
            unit = float(np.abs(values).max())
            if name == PROBABILITIES:
                unit = max(1.0, float(np.abs(wanted[LOGITS]).max()) / trained.temperature)
            difference = np.abs(found[name] - values).max() / unit
            worst[name] = float(
                np.maximum(worst[name], difference)
            )  # keeps what is no number, as `max` would not
    return Agreement(images, equal, **worst, largest_logit=largest)


def drawn_batches(image_px: int) -> Iterator[Images]:
    """Batches of 1, 2, 3 and 64 drawn birds: uint8 [B, 3, P, P]."""
    number = 0
    for size in BATCHES:
        batch = [drawn(image_px, n) for n in range(number, number + size)]
        number += size
        yield channels_first(batch)


def channels_first(pictures_: Sequence[Images]) -> Images:
    """Pictures [P, P, 3] as a batch [B, 3, P, P]."""
    return np.ascontiguousarray(np.stack(pictures_).transpose(0, 3, 1, 2))


def drawn(side_px: int, number: int) -> Images:
    """A drawn bird in a square: uint8 [side_px, side_px, 3], RGB."""
    species = species_list(SPECIES, seed=0)[number % SPECIES]
    drawing = bird.draw(species, seeding.generator("export", number)).image
    return pictures.resized(drawing, side_px, side_px)
