"""Prediction sets: "one of these three, with 90 %", by split conformal prediction.

A score says how badly a class fits an image. Of the n validation images' scores of their true classes, the
ceil((n + 1) x coverage)-th smallest is the threshold (Vovk, Gammerman & Shafer 2005; Angelopoulos & Bates 2021,
arXiv:2107.07511, section 1.1), and an image's set has all classes whose score is not above it. Then the set of a new
image contains its true class with at least that probability, if new images come as the validation images do.

lac: 1 - probability of the class (Sadinle, Lei & Wasserman 2019): the smallest sets on average, and empty ones, which
are given their most probable class here. aps: the probability of all classes that are more probable (Romano, Sesia &
Candès 2020, with 0 for their random share of the class's own probability): larger sets for images that are harder.

The promise holds on average over images, not for each class or each kind of image. Probabilities are taken without a
temperature: it is fitted to the validation images, and the promise needs scores that saw none of them. The epoch was
chosen on them, which costs a little of it: so coverage is measured on the evaluated split and given with its interval.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.common import arrays
from pipeline.evaluation import calibration, statistics
from pipeline.evaluation.set_rule import Method, SetRule
from pipeline.runs.predictions import Validation

COVERAGE = 0.9

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def lac_score(probability: Floats, label: Ints) -> Floats:
    """1 - the probability of the label: float64 [n, C], int64 [n] -> float64 [n]."""
    return 1 - probability[np.arange(len(label)), label]


def aps_score(probability: Floats, label: Ints) -> Floats:
    """The probability of all classes that are more probable than the label: float64 [n, C], int64 [n] -> float64 [n]."""
    own = probability[np.arange(len(label)), label]
    return np.asarray((probability * (probability > own[:, None])).sum(axis=1), np.float64)


SCORES: dict[Method, Callable[[Floats, Ints], Floats]] = {"lac": lac_score, "aps": aps_score}


def calibrate(method: Method, logits: calibration.Logits, label: Ints, coverage: float = COVERAGE) -> SetRule:
    """The rule that covers a share of images like these.

    Args:
        logits: of images that the model did not learn from, float32 [n, C].
        label: their true classes, int64 [n].
    """
    scores = [
        SCORES[method](np.exp(calibration.log_probabilities(block)), label[rows])
        for rows, block in arrays.blocks(logits)
    ]
    ordered = np.sort(np.concatenate(scores))
    place = math.ceil((len(label) + 1) * coverage)
    threshold = float(ordered[place - 1]) if place <= len(label) else None
    return SetRule(method, coverage, len(label), threshold)


def summary(logits: calibration.Logits, label: Ints, validation: Validation) -> dict[str, Any]:
    """What metrics.json has of both methods, in plain types: the rule, and what its sets are on the evaluated images.

    covered: the share of images whose set has their class, with Wilson's 95 % interval. size: the mean number of
    classes, with the bootstrap's interval; size_median.
    """
    found: dict[str, Any] = {}
    for method in SCORES:
        rule = calibrate(method, validation.logits, validation.label)
        found[method] = asdict(rule) | _measured(rule, logits, label)
    return found


def _measured(rule: SetRule, logits: calibration.Logits, label: Ints) -> dict[str, float]:
    inside, size = np.empty(len(label), bool), np.empty(len(label), np.int64)
    for rows, block in arrays.blocks(logits):
        sets = rule.sets(block)
        inside[rows], size[rows] = sets[np.arange(len(block)), label[rows]], sets.sum(axis=1)
    low, high = statistics.wilson(int(inside.sum()), len(label))
    ((size_low, size_high),) = statistics.mean_intervals(size[:, None].astype(np.float64))
    return {
        "covered": float(inside.mean()),
        "covered_low": low,
        "covered_high": high,
        "size": float(size.mean()),
        "size_low": size_low,
        "size_high": size_high,
        "size_median": float(np.median(size)),
    }
