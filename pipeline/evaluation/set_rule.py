"""A rule of prediction sets, as answers apply it; `prediction_sets` calibrates it and names its sources."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.evaluation import calibration

Method = Literal["lac", "aps"]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SetRule:
    """From which score on a class is left out; chosen on n validation images for a share of covered images.

    threshold: None where n images are too few for the coverage: each set has all classes.
    """

    method: Method
    coverage: float
    n: int
    threshold: float | None

    def sets(self, logits: calibration.Logits) -> Flags:
        """The classes in the set of each image: float32 [n, C] -> bool [n, C]; one class at least."""
        probability = np.exp(calibration.log_probabilities(logits))
        inside = np.ones(probability.shape, bool)
        if self.threshold is not None:
            inside = probability >= LEAST_PROBABLE[self.method](probability, self.threshold)[:, None]
        inside[np.arange(len(logits)), logits.argmax(axis=1)] = True
        return inside


def lac_least_probable(probability: Floats, threshold: float) -> Floats:
    """The least probability of a class whose score is not above a threshold: float64 [n, C] -> [n]."""
    return np.full(len(probability), 1 - threshold)


def aps_least_probable(probability: Floats, threshold: float) -> Floats:
    """The same for the scores of `aps`."""
    ordered = np.sort(probability, axis=1)[:, ::-1]
    classes = (ordered.cumsum(axis=1) - ordered <= threshold).sum(axis=1)
    return np.asarray(ordered[np.arange(len(ordered)), np.maximum(classes, 1) - 1], np.float64)


LEAST_PROBABLE: dict[Method, Callable[[Floats, float], Floats]] = {
    "lac": lac_least_probable,
    "aps": aps_least_probable,
}
