"""SWATS: when Adam should hand over to SGD, and with which learning rate.

Keskar & Socher 2017, "Improving generalization performance by switching from Adam to SGD",
arXiv:1712.07628. Each of Adam's steps p is seen as a step of SGD along the gradient g: the learning rate
with which SGD's step, projected on p, is p itself is -(p.p) / (p.g). Once a step's rate agrees with
their running mean, Adam walks as SGD with that rate would.
"""

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.config.optim import SwatsRule
from pipeline.training.optimizer import Optimizer

BETA = 0.999  # of the running mean, for an optimizer that has none of its own


@dataclass
class SwatsState:
    """The running mean of the learning rates, as Adam's own: exponential, its start corrected for."""

    mean: float = 0.0
    steps: int = 0
    proposed: float | None = None
    """SGD's learning rate without momentum, once the criterion has been met"""

    def observe(self, rate: float, beta: float, rule: SwatsRule) -> None:
        """Take the learning rate of one step; beta is Adam's second one."""
        self.steps += 1
        self.mean = beta * self.mean + (1 - beta) * rate
        corrected = self.mean / (1 - beta**self.steps)
        if self.steps > 1 and corrected > 0 and abs(corrected - rate) < rule.tolerance:
            self.proposed = corrected


class Projection:
    """A look at an optimizer's parameters before and after a step."""

    def __init__(self, optimizer: Optimizer) -> None:
        """Call it before the step, when the gradients are there."""
        self._optimizer = optimizer
        self._before = {
            parameter: parameter.detach().clone()
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        }

    def rate(self) -> float | None:
        """The learning rate of the step just taken, for a multiplier of 1; None: it was across the gradient."""
        sums = []
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self._before and parameter.grad is not None:
                    step = (parameter.detach() - self._before[parameter]) / group["lr_multiplier"]
                    sums.append(
                        torch.stack([step.double().square().sum(), (step * parameter.grad).double().sum()])
                    )
        squares, along = torch.stack(sums).sum(0).tolist()
        return -squares / along if along else None


def attach_swats(optimizer: Optimizer, state: SwatsState, rule: SwatsRule) -> None:
    """Have `state` observe every step that the optimizer takes from here on."""
    beta = optimizer.param_groups[0].get("betas", (0.9, BETA))[1]
    looks: list[Projection] = []

    def before(*_: Any) -> None:
        looks.append(Projection(optimizer))

    def after(*_: Any) -> None:
        rate = looks.pop().rate()
        if rate is not None and state.proposed is None:
            state.observe(rate, beta, rule)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def sgd_rate(proposed: float, momentum: float) -> float:
    """The learning rate of SGD with momentum whose long step is that of SGD without it, as in the paper."""
    return proposed * (1 - momentum)
