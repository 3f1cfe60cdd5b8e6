"""A linear head on fixed features: what `plumage probe` measures, and what `train.start_from=probe` begins with.

It learns from training images alone; validation chooses its weight decay: the best top-1, of equal ones the lowest
cross-entropy.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax
from torch import Tensor
from torch.nn import functional as F

from pipeline.inference.features import Features

Ints = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
LogitsOf = Callable[[Features], Logits]
Model = TypeVar("Model", bound=LogitsOf)

WEIGHT_DECAYS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
DEFAULT_WEIGHT_DECAY = 1e-3
MOST_STEPS = 200  # of L-BFGS, for each weight decay


class Images(NamedTuple):
    """Features float32 [n, D] and labels int64 [n]."""

    features: Features
    labels: Ints


class Choice(NamedTuple, Generic[Model]):
    """The best of several models of one setting."""

    setting: float
    model: Model
    val_top1: float | None
    """share of the validation images that are right, 0..1; None without any"""
    val_loss: float | None
    """mean cross-entropy of the validation images, nats; None without any"""


@dataclass(frozen=True)
class LinearHead:
    """Weights [C, D] and biases [C] of centred and scaled features, `(features - mean) * scale`; all float64."""

    weight: Tensor
    bias: Tensor
    mean: npt.NDArray[np.float64]
    """[D]"""
    scale: float

    def __call__(self, features: Features) -> Logits:
        """Features float32 [m, D] -> logits float32 [m, C]."""
        return (self.scaled(features) @ self.weight.T + self.bias).float().numpy()

    def scaled(self, features: Features) -> Tensor:
        """Float64 [m, D]."""
        return torch.from_numpy((features - self.mean) * self.scale)

    def of_plain_features(self) -> tuple[Tensor, Tensor]:
        """Weights [C, D] and biases [C], float32, that give the same logits from uncentred, unscaled features."""
        weight = self.weight * self.scale
        return weight.float(), (self.bias - weight @ torch.from_numpy(self.mean)).float()


def fit_linear_head(
    train: Images, val: Images, classes: int, without_val: float = DEFAULT_WEIGHT_DECAY
) -> Choice[LinearHead]:
    """Multinomial logistic regression by L-BFGS: mean cross-entropy + weight decay / 2 * |weights|^2.

    Features are centred, and scaled by one number to a mean squared length of 1, so that a weight decay means the
    same for any backbone. Each weight decay starts from the solution of the stronger one before it.

    Args:
        val: chooses the weight decay.
        classes: C; a class without a training image is answered last.
        without_val: the weight decay where there are no validation images.
    """
    mean = train.features.mean(axis=0, dtype=np.float64)
    scale = 1 / max(float(np.sqrt(((train.features - mean) ** 2).sum(axis=1).mean())), 1e-12)

    def solutions() -> Iterable[tuple[float, LinearHead]]:
        zeros = (
            torch.zeros(classes, len(mean), dtype=torch.float64),
            torch.zeros(classes, dtype=torch.float64),
        )
        head = LinearHead(*zeros, mean, scale)
        inputs, labels = head.scaled(train.features), torch.from_numpy(train.labels)
        for decay in WEIGHT_DECAYS if len(val.labels) else (without_val,):
            head = LinearHead(*minimise(inputs, labels, decay, head.weight, head.bias), mean, scale)
            yield decay, head

    return choose(solutions(), val)


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


def choose(candidates: Iterable[tuple[float, Model]], val: Images) -> Choice[Model]:
    """The candidate (setting and model) of the best validation; the first one where there are no validation images.

    Raises:
        ValueError: no candidate has a finite score.
    """
    best: Choice[Model] | None = None
    best_score = (-np.inf, -np.inf)
    for setting, model in candidates:
        if not len(val.labels):
            return Choice(setting, model, None, None)
        top1, loss = _top1_and_loss(model(val.features), val.labels)
        if (top1, -loss) > best_score:
            best, best_score = Choice(setting, model, top1, loss), (top1, -loss)
    if best is None:
        raise ValueError("no candidate has a finite score")
    return best


def _top1_and_loss(logits: Logits, labels: Ints) -> tuple[float, float]:
    log_probability = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return float((logits.argmax(axis=1) == labels).mean()), float(-log_probability.mean())
