"""The moving average of the weights: timm's, which looks its tensors up once and not in each step."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn


@dataclass(frozen=True)
class _Pairs:
    """The tensors of an average and those of a model, in the same order."""

    model: "weakref.ref[nn.Module]"
    averaged: Sequence[Tensor]
    learned: Sequence[Tensor]
    copied_to: Sequence[Tensor]
    """those that are no floating-point numbers: counts"""
    copied_from: Sequence[Tensor]


class WeightAverage(ModelEmaV3):
    """`ModelEmaV3` of timm, to the bit, without two `state_dict` of a model a step.

    A model's parameters and buffers stay the same tensors while it is trained: loading, freezing and learning write
    into them. With `foreach=False` (shards, whose parameters do not) it is timm's own.
    """

    _pairs: _Pairs | None = None

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Move every tensor of the average towards the model's, by 1 - `decay` of the way."""
        if not self.foreach:
            super().apply_update_(model, decay)
            return
        if self._pairs is None or self._pairs.model() is not model:
            self._pairs = _pairs(self.module, model)
        pairs = self._pairs
        if pairs.copied_to:
            torch._foreach_copy_(list(pairs.copied_to), list(pairs.copied_from))
        self._foreach_lerp_(list(pairs.averaged), list(pairs.learned), weight=1.0 - decay)


def _pairs(average: nn.Module, model: nn.Module) -> _Pairs:
    averaged, learned = (each.state_dict(keep_vars=True) for each in (average, model))
    lerped = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
    counted = [name for name in averaged if name not in set(lerped)]
    return _Pairs(
        weakref.ref(model),
        [averaged[name] for name in lerped],
        [learned[name] for name in lerped],
        [averaged[name] for name in counted],
        [learned[name] for name in counted],
    )
