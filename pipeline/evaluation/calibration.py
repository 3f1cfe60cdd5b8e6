"""How reliable a model's confidence is: calibration, temperature scaling, selective prediction.

A confidence is calibrated when 80 % of the images with confidence 0.8 are predicted right.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import log_softmax

from pipeline.common import arrays

Floats = npt.NDArray[np.float64]
Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

BINS = 15
EDGES = np.linspace(0, 1, BINS + 1)
TEMPERATURES = 0.05, 20.0  # lower and upper bound of a fitted temperature
COVERAGE_ROWS = 200


def log_probabilities(logits: Logits, temperature: float = 1.0) -> Floats:
    """log softmax(logits / temperature): float64 [n, C], in nats."""
    return np.asarray(log_softmax(logits.astype(np.float64) / temperature, axis=1), np.float64)


def nll(log_probability: Floats, labels: Labels) -> Floats:
    """The negative log-likelihood of each image in nats: float64 [n]."""
    return np.asarray(-log_probability[np.arange(len(labels)), labels], np.float64)


def brier(log_probability: Floats, labels: Labels) -> Floats:
    """Brier's score of each image (Brier 1950): the squared error summed over classes, 0..2, [n]."""
    probability = np.exp(log_probability)
    probability[np.arange(len(labels)), labels] -= 1
    return np.asarray((probability**2).sum(axis=1), np.float64)


def confidence_and_correct(log_probability: Floats, labels: Labels) -> tuple[Floats, Floats]:
    """The probability of the predicted class, and 1 where it is the true one: float64 [n] both."""
    right = log_probability.argmax(axis=1) == labels
    return np.exp(log_probability.max(axis=1)), right.astype(np.float64)


class PerImage(NamedTuple):
    """float64 [n] each. confidence: the probability of the predicted class; correct: 1 where it is the true one."""

    confidence: Floats
    correct: Floats
    nll: Floats
    brier: Floats


def per_image(logits: Logits, labels: Labels, temperature: float = 1.0) -> PerImage:
    """What calibration is computed from, block by block: the probabilities of all classes take much memory."""
    parts = []
    for rows, block in arrays.blocks(logits):
        log_probability, label = log_probabilities(block, temperature), labels[rows]
        of_class = confidence_and_correct(log_probability, label)
        parts.append((*of_class, nll(log_probability, label), brier(log_probability, label)))
    return PerImage(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def bin_of(confidence: Floats) -> Labels:
    """The bin of each confidence, int64 [n], 0..14."""
    return np.clip(np.searchsorted(EDGES, confidence, side="left") - 1, 0, BINS - 1)


def reliability(confidence: Floats, correct: Floats) -> pd.DataFrame:
    """15 bins of equal width over the confidence, each (low, high]: bin_low, bin_high, n, confidence, accuracy.

    `confidence` and `accuracy` are means of the bin's images, NaN where it has none.
    """
    at = bin_of(confidence)
    n = np.bincount(at, minlength=BINS)
    sums = [np.bincount(at, values, minlength=BINS) for values in (confidence, correct)]
    means = [np.divide(total, n, out=np.full(BINS, np.nan), where=n > 0) for total in sums]
    return pd.DataFrame(
        {"bin_low": EDGES[:-1], "bin_high": EDGES[1:], "n": n, "confidence": means[0], "accuracy": means[1]}
    )


def expected_error(bins: pd.DataFrame) -> float:
    """The expected calibration error, 0..1 (Guo et al. 2017): mean of |accuracy - confidence|, weighted by n."""
    gap = (bins["accuracy"] - bins["confidence"]).abs()
    return float((gap * bins["n"]).sum() / bins["n"].sum())


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature with the lowest mean negative log-likelihood, between 0.05 and 20 (Guo et al. 2017).

    Without a mistake among the images every lower temperature is better, and the lower bound is returned.
    """
    from scipy.optimize import minimize_scalar  # which predict need not import

    def loss(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        parts = [
            nll(log_probabilities(block, temperature), labels[rows]) for rows, block in arrays.blocks(logits)
        ]
        return float(np.concatenate(parts).mean())

    low, high = np.log(TEMPERATURES)
    minimum = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(min((low, minimum.x, high), key=loss)))


def is_at_bound(temperature: float) -> bool:
    """Whether a fitted temperature is one of the two bounds, so that the images do not determine it."""
    return temperature in [float(np.exp(np.log(bound))) for bound in TEMPERATURES]


def coverage(confidence: Floats, correct: Floats) -> pd.DataFrame:
    """Selective prediction: answering only where the confidence is at least `threshold`.

    A row a threshold (the confidences that occur, at most 200 of them, evenly spaced), highest first:
    coverage (share of images answered), accuracy (among these), threshold.
    """
    answered, right, threshold = _answered(confidence, correct)
    kept = np.unique(np.linspace(0, len(answered) - 1, COVERAGE_ROWS).round().astype(int))
    return pd.DataFrame(
        {
            "coverage": answered[kept] / len(confidence),
            "accuracy": right[kept] / answered[kept],
            "threshold": threshold[kept],
        }
    )


def area_under_risk(confidence: Floats, correct: Floats) -> float:
    """The area under the risk-coverage curve, 0..1, lower is better (Geifman et al. 2019).

    The mean error rate among the images at least as confident as each image.
    """
    answered, right, _ = _answered(confidence, correct)
    gained = np.diff(answered, prepend=0)
    return float(((1 - right / answered) * gained).sum() / len(confidence))


def accuracy_at_coverage(confidence: Floats, correct: Floats, share: float) -> float:
    """The accuracy on the most confident images when at least this share of all images is answered."""
    answered, right, _ = _answered(confidence, correct)
    at = int(np.searchsorted(answered, share * len(confidence) - 1e-9))
    return float(right[at] / answered[at])


def _answered(confidence: Floats, correct: Floats) -> tuple[Floats, Floats, Floats]:
    """For each confidence that occurs, highest first: images answered, right ones among these, the confidence."""
    threshold, at = np.unique(-confidence, return_inverse=True)
    answered = np.cumsum(np.bincount(at)).astype(np.float64)
    return answered, np.cumsum(np.bincount(at, correct)), -threshold
