"""Parameter groups, and SGD over them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipeline.config import OptimConfig


def parameter_groups(model: nn.Module, head: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Body and head, each with and without weight decay; empty groups are left out.

    Norms and biases are vectors and have no decay (He et al. 2019, arXiv:1812.01187). A group's
    `lr_multiplier` is its learning rate over that of the schedule.
    """
    in_head = {id(parameter) for parameter in head.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in in_head, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_multiplier": config.head_lr_multiplier if of_head else 1.0,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (of_head, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def sgd(groups: Iterable[dict[str, Any]], *, lr: float, momentum: float, nesterov: bool) -> torch.optim.SGD:
    """SGD with (Nesterov) momentum; weight decay stands in the groups.

    Sutskever et al. 2013, as PyTorch has it: the learning rate is outside of the momentum buffer.
    """
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]
