"""Three classifiers of fixed features: a linear head, the nearest neighbours, and the nearest class mean.

Each learns from training images alone. What it leaves open, weight decay or k, is chosen by the validation images: the
best top-1, of equal ones the lowest cross-entropy. The test images are no argument of what fits and chooses.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax
from torch import Tensor
from torch.nn import functional as F

from pipeline.explain.neighbours import nearest, unit_length
from pipeline.inference.features import Features

Ints = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
LogitsOf = Callable[[Features], Logits]

WEIGHT_DECAYS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
DEFAULT_WEIGHT_DECAY = 1e-3
KS = (1, 3, 5, 10, 20, 50)
DEFAULT_K = 10
MOST_STEPS = 200  # of L-BFGS, for each weight decay
UNTAUGHT = (
    -8.0
)  # a logit below that of any class mean: unit features are at most 2 apart, and 4 is the square


class Images(NamedTuple):
    """Features float32 [n, D] and labels int64 [n]."""

    features: Features
    labels: Ints


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
    """The three classifiers; without validation images they take `DEFAULT_WEIGHT_DECAY` and `DEFAULT_K`.

    Args:
        classes: C; a class without a training image is answered last.
    """
    return [fit_linear(train, val, classes), fit_knn(train, val, classes), fit_means(train, val, classes)]


def fit_linear(train: Images, val: Images, classes: int) -> Fitted:
    """Multinomial logistic regression by L-BFGS: mean cross-entropy + weight decay / 2 * |weights|^2.

    Features are centred, and scaled by one number to a mean squared length of 1, so that a weight decay means the
    same for any backbone. Each weight decay starts from the solution of the stronger one before it.
    """
    mean = train.features.mean(axis=0, dtype=np.float64)
    scale = 1 / max(float(np.sqrt(((train.features - mean) ** 2).sum(axis=1).mean())), 1e-12)

    def scaled(features: Features) -> Tensor:
        return torch.from_numpy((features - mean) * scale)

    def logits(features: Features, weight: Tensor, bias: Tensor) -> Logits:
        return (scaled(features) @ weight.T + bias).float().numpy()

    def solutions() -> Iterable[tuple[float, LogitsOf]]:
        inputs, labels = scaled(train.features), torch.from_numpy(train.labels)
        weight, bias = inputs.new_zeros(classes, inputs.shape[1]), inputs.new_zeros(classes)
        for decay in WEIGHT_DECAYS if len(val.labels) else (DEFAULT_WEIGHT_DECAY,):
            weight, bias = minimise(inputs, labels, decay, weight, bias)
            yield decay, partial(logits, weight=weight, bias=bias)

    return _choose("linear", "weight_decay", solutions(), val)


def minimise(
    inputs: Tensor, labels: Tensor, weight_decay: float, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The weights [C, D] and biases [C] of a logistic regression, from where to start; inputs [n, D]; all float64."""
    weight, bias = (tensor.clone().requires_grad_() for tensor in (weight, bias))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_STEPS,
        history_size=10,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weight.T + bias, labels) + weight_decay / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


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
    candidates = [(k, partial(vote, k=k)) for k in possible]
    return _choose("knn", "k", candidates, val)


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

    return _choose("nearest_mean", None, [(0.0, logits)], val)


def _choose(
    name: str,
    setting: str | None,
    candidates: Iterable[tuple[float, LogitsOf]],
    val: Images,
) -> Fitted:
    """The candidate of the best validation; the only one where there are no validation images."""
    best: Fitted | None = None
    best_score = (-np.inf, -np.inf)
    for value, logits in candidates:
        chosen = {} if setting is None else {setting: value}
        if not len(val.labels):
            return Fitted(name, logits, chosen, None)
        top1, loss = _top1_and_loss(logits(val.features), val.labels)
        if (top1, -loss) > best_score:
            best, best_score = Fitted(name, logits, chosen, top1), (top1, -loss)
    if best is None:
        raise ValueError(f"{name}: no candidate has a finite score")
    return best


def _top1_and_loss(logits: Logits, labels: Ints) -> tuple[float, float]:
    log_probability = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return float((logits.argmax(axis=1) == labels).mean()), float(-log_probability.mean())
