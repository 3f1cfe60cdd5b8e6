"""Three classifiers of fixed features: a linear head, the nearest neighbours, and the nearest class mean.

Each learns from training images alone. What it leaves open, weight decay or k, is chosen by the validation images: the
best top-1, of equal ones the lowest cross-entropy. The test images are not passed to what fits and chooses.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.explain.neighbours import nearest, unit_length
from pipeline.inference.features import Features
from pipeline.inference.linear_head import Images, Logits, LogitsOf, choose, fit_linear_head

KS = (1, 3, 5, 10, 20, 50)
DEFAULT_K = 10
UNTAUGHT = (
    -8.0
)  # a logit below that of any class mean: unit features are at most 2 apart, and 4 is the square


@dataclass(frozen=True)
class Fitted:
    """A classifier that has learned. logits: features float32 [m, D] -> float32 [m, C]."""

    name: str
    logits: LogitsOf
    setting: dict[str, float]
    """what was chosen, by its name; empty where nothing is open"""
    val_top1: float | None
    """share of the validation images that are right, 0..1; None without any"""


def fit_all(train: Images, val: Images, classes: int) -> list[Fitted]:
    """The three classifiers; without validation images weight decay and k are fixed.

    Args:
        classes: C; a class without a training image is answered last.
    """
    return [fit_linear(train, val, classes), fit_knn(train, val, classes), fit_means(train, val, classes)]


def fit_linear(train: Images, val: Images, classes: int) -> Fitted:
    """Multinomial logistic regression (`fit_linear_head`)."""
    chosen = fit_linear_head(train, val, classes)
    return Fitted("linear", chosen.model, {"weight_decay": chosen.setting}, chosen.val_top1)


def fit_knn(train: Images, val: Images, classes: int) -> Fitted:
    """The vote of the k nearest training images by cosine; of equal votes the lower label wins.

    The logits are the logarithms of the shares of the votes, with one more vote that all classes share.
    """

    def vote(features: Features, k: int) -> Logits:
        near, _ = nearest(train.features, features, k)
        votes = np.zeros((len(features), classes))
        np.add.at(votes, (np.arange(len(features))[:, None], train.labels[near]), 1)
        return np.log((votes + 1 / classes) / (k + 1)).astype(np.float32)

    ks = KS if len(val.labels) else (DEFAULT_K,)
    possible = dict.fromkeys(min(k, len(train.labels)) for k in ks)
    chosen = choose([(k, partial(vote, k=k)) for k in possible], val)
    return Fitted("knn", chosen.model, {"k": chosen.setting}, chosen.val_top1)


def fit_means(train: Images, val: Images, classes: int) -> Fitted:
    """The nearest class mean of features that are centred and of length 1: CL2N of SimpleShot.

    Wang et al. 2019, arXiv:1911.04623. The logits are negative squared distances.
    """
    centre = train.features.mean(axis=0)
    unit = unit_length(train.features - centre)
    means = {label: unit[train.labels == label].mean(axis=0) for label in np.unique(train.labels)}

    def logits(features: Features) -> Logits:
        of_queries = unit_length(features - centre)
        found = np.full((len(features), classes), UNTAUGHT, np.float32)
        for label, mean in means.items():
            found[:, label] = -np.square(of_queries - mean).sum(axis=1)
        return found

    return Fitted("nearest_mean", logits, {}, choose([(0.0, logits)], val).val_top1)
