"""One kernel for a whole optimizer step on GPUs (torch's `fused=True`), where it computes what the others do."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from pipeline.config.optim import ResolvedPhase, SwatsRule

DEVICES = ("cuda",)
OPTIMIZERS = ("sgd", "adam", "adamw")
# Another implementation that is asked for; and with dampening the first step of SGD's momentum is unlike the others.
EXCLUDING = {"fused", "foreach", "capturable", "differentiable", "dampening"}


def fused_option(groups: Iterable[Mapping[str, Any]], phase: ResolvedPhase) -> dict[str, Any]:
    """`{"fused": True}` where the optimizer of a phase has such a kernel for these parameters, else nothing.

    SWATS looks at every step that is taken, and with fp16 a fused kernel is called for those that are skipped, too.
    """
    parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
    fits = (
        phase.name in OPTIMIZERS
        and not EXCLUDING & dict(phase.options).keys()
        and not isinstance(phase.until, SwatsRule)
        and all(p.device.type in DEVICES and not isinstance(p, DTensor) for p in parameters)
    )
    return {"fused": True} if fits else {}


def start_momentum_at_zero(optimizer: torch.optim.Optimizer) -> None:
    """Give each weight that learns for the first time a momentum of zero, before the fused SGD takes its step.

    The kernel itself takes a group whose weights begin together alone, and not one with a stage that thaws; and where
    fp16 skips the first step, it would leave the momentum uninitialised.
    """

    def start(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                state = optimizer.state[parameter]
                if parameter.grad is not None and state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)

    optimizer.register_step_pre_hook(start)
