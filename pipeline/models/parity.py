"""Whether two networks are the same one: their outputs and gradients for the same weights and the same images."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Differences:
    """Largest absolute differences between two networks, in float64."""

    logits: float
    """in evaluation mode"""
    logits_training: float
    """in training mode, where batch norm takes the statistics of the batch"""
    loss: float
    """of that pass, nats"""
    gradients: float
    """of the mean cross-entropy, over all parameters, in training mode"""
    statistics: float
    """of the running means and variances that this pass leaves"""

    @property
    def largest(self) -> float:
        """The largest of them."""
        return max(self.logits, self.logits_training, self.loss, self.gradients, self.statistics)


def draw_state(model: nn.Module, seed: int) -> None:
    """Move norms and their statistics away from 0 and 1, so that no term of a network is hidden by its start."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                drawn = torch.rand(tensor.shape, generator=random, dtype=torch.float64)
                tensor.data.copy_(low + (high - low) * drawn)


def compare(one: nn.Module, other: nn.Module, images: Tensor, label: Tensor) -> Differences:
    """Give `one` the weights of `other` by name, and compare them; both become float64 and learn no step.

    Args:
        images: float64 [B, D, H, W].
        label: int64 [B].

    Raises:
        RuntimeError: the names or shapes of the two state dicts are not the same.
    """
    one, other = one.double(), other.double()
    one.load_state_dict(other.state_dict())
    with torch.no_grad():
        logits = _difference(one.eval()(images), other.eval()(images))
    (own, own_loss), (theirs, their_loss) = (_learn(model, images, label) for model in (one, other))
    of_one, of_other = dict(one.named_parameters()), dict(other.named_parameters())
    gradients = max(_difference(of_one[name].grad, of_other[name].grad) for name in of_one)
    state, other_state = one.state_dict(), other.state_dict()
    return Differences(
        logits=logits,
        logits_training=_difference(own, theirs),
        loss=_difference(own_loss, their_loss),
        gradients=gradients,
        statistics=max(_difference(state[name].double(), other_state[name].double()) for name in state),
    )


def _learn(model: nn.Module, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and loss in training mode; the gradients are left in the parameters."""
    model.train().zero_grad()
    logits = model(images)
    loss = F.cross_entropy(logits, label)
    loss.backward()  # type: ignore[no-untyped-call]
    return logits.detach(), loss.detach()


def _difference(one: Tensor | None, other: Tensor | None) -> float:
    assert one is not None and other is not None, "every parameter has a gradient"
    return float((one - other).abs().max())
