"""Parameter groups, the optimizer over them, and what passes from one optimizer to the next."""

import inspect
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from timm.optim._optim_factory import create_optimizer_v2
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline.common.errors import ConfigError
from pipeline.config.optim import OptimConfig, ResolvedPhase
from pipeline.models.classifier import Classifier
from pipeline.models.option_errors import RAISED
from pipeline.training.fused import fused_option, start_momentum_at_zero

Optimizer = torch.optim.Optimizer
TORCH_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def parameter_groups(model: Classifier, config: OptimConfig, *, weight_decay: float) -> list[dict[str, Any]]:
    """The model's parameters, grouped by their learning rate and by whether they decay.

    Norms and biases are vectors and have no decay (He et al. 2019, arXiv:1812.01187), nor has what timm's
    `no_weight_decay` names, such as a transformer's tokens and embeddings of positions. A group's
    `lr_multiplier` is its learning rate over that of the schedule: `head_lr_multiplier` for the new layers;
    for the rest, `layer_decay` to the power of how far a layer is below the top (ULMFiT, Howard & Ruder
    2018, arXiv:1801.06146; layers as timm groups them).

    Raises:
        ConfigError: layer-wise decay is asked for, and timm does not say what the model's layers are.
    """
    new = {id(parameter) for module in model.new_layers for parameter in module.parameters()}
    below_top = _layers_below_top(model) if config.layer_decay < 1 else {}
    undecayed = _undecayed(model)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if id(parameter) in new:
            multiplier = config.head_lr_multiplier
        else:
            multiplier = config.layer_decay ** below_top.get(id(parameter), 0)
        decays = parameter.ndim > 1 and id(parameter) not in undecayed
        groups.setdefault((multiplier, decays), []).append(parameter)
    return [
        {"params": parameters, "lr_multiplier": multiplier, "weight_decay": weight_decay if decays else 0.0}
        for (multiplier, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _undecayed(model: Classifier) -> set[int]:
    """The parameters (by id) that timm's network says not to decay, whatever their shape."""
    patterns: Iterable[str] = getattr(model.backbone, "no_weight_decay", set)()
    named = model.backbone.named_parameters()
    return {id(parameter) for name, parameter in named if any(fnmatch(name, each) for each in patterns)}


def saved_order(model: Classifier, optimizer: Optimizer, saved: list[dict[str, Any]]) -> list[nn.Parameter]:
    """The parameters in the order in which the state of a saved optimizer numbers them.

    Version 0.1 grouped them by their number of dimensions alone.

    Args:
        optimizer: over the same parameters, in their groups of today.
        saved: the saved groups.
    """
    groups = optimizer.param_groups
    if [len(group["params"]) for group in groups] == [len(group["params"]) for group in saved]:
        return [parameter for group in groups for parameter in group["params"]]
    multiplier = {parameter: group["lr_multiplier"] for group in groups for parameter in group["params"]}
    return sorted(model.parameters(), key=lambda parameter: (multiplier[parameter], parameter.ndim > 1))


def _layers_below_top(model: Classifier) -> dict[int, int]:
    """How many layers are above the one of each parameter (by id), the head being the top."""
    named = dict(model.backbone.named_parameters())
    layer = group_with_matcher(iter(named.items()), _matcher(model, coarse=False), reverse=True)
    return {id(named[name]): max(layer.values()) - number for name, number in layer.items()}


def stages(model: Classifier) -> list[list[nn.Module]]:
    """The modules with weights of their own, stage by stage from the stem to the head, as timm groups them.

    Raises:
        ConfigError: timm does not say what the model's stages are.
    """
    named = dict(model.backbone.named_parameters())
    numbers = group_with_matcher(iter(named.items()), _matcher(model, coarse=True), reverse=True)
    of_stage: dict[int, dict[str, nn.Module]] = {}
    for name, number in numbers.items():
        owner = name.rpartition(".")[0]
        of_stage.setdefault(number, {})[owner] = model.backbone.get_submodule(owner)
    return [list(of_stage[number].values()) for number in sorted(of_stage)]


def _matcher(model: Classifier, *, coarse: bool) -> Any:
    if not hasattr(model.backbone, "group_matcher"):
        raise ConfigError(
            f"{type(model.backbone).__name__} has no layers that timm can name; "
            "set optim.layer_decay=1 and optim.frozen_stages=0"
        )
    return model.backbone.group_matcher(coarse=coarse)  # type: ignore[operator]


def build_optimizer(groups: Iterable[dict[str, Any]], phase: ResolvedPhase, *, lr: float) -> Optimizer:
    """The optimizer of a phase over parameter groups; weight decay stands in the groups.

    SGD's (Nesterov) momentum is that of Sutskever et al. 2013, as PyTorch has it: the learning rate is outside
    of the momentum buffer. Names that PyTorch does not have are timm's. On a GPU the step is one kernel (`fused`).

    Raises:
        ConfigError: there is no such optimizer, it does not take one of the options, or an option contradicts
            another key.
    """
    options: dict[str, Any] = dict(phase.options)
    _check_options(phase)
    groups = list(groups)
    in_one = fused_option(groups, phase)
    try:
        if phase.name == "sgd":
            momentum: dict[str, Any] = {
                "momentum": phase.momentum,
                "nesterov": phase.nesterov and bool(phase.momentum),
            }
            sgd = torch.optim.SGD(groups, lr=lr, **momentum, **options, **in_one)
            if in_one:
                start_momentum_at_zero(sgd)
            return sgd
        if phase.name in TORCH_OPTIMIZERS:
            return TORCH_OPTIMIZERS[phase.name](groups, lr=lr, **options, **in_one)
        optimizer: Optimizer = create_optimizer_v2(groups, phase.name, lr=lr, **options)
        for group in optimizer.param_groups:
            if "nesterov" in group and not phase.nesterov:
                group["nesterov"] = False
        return optimizer
    except RAISED as error:
        names = ", ".join(["sgd", *TORCH_OPTIMIZERS])
        raise ConfigError(
            f"optimizer {phase.name} with {options}: {error}; there are {names}, "
            "and those of timm.optim.list_optimizers()"
        ) from error


def _check_options(phase: ResolvedPhase) -> None:
    """Refuse options that would be overruled without a word: by another key, or by the groups that are given."""
    options = dict(phase.options)
    keys: dict[str, Any] = {"weight_decay": phase.weight_decay, "nesterov": phase.nesterov}
    if phase.name != "rmsprop":
        keys["momentum"] = phase.momentum
    where = f"optimizer {phase.name} with {options}"
    betas = options.get("betas")
    if isinstance(betas, tuple) and betas and betas[0] != phase.momentum:
        raise ConfigError(
            f"{where}: beta1 is momentum={phase.momentum} here; set momentum={betas[0]}, beside the options, or give "
            f"{phase.momentum} as the first of betas"
        )
    for key, value in keys.items():
        if key in options and options[key] != value:
            raise ConfigError(f"{where}: {key} is {value} here; set it beside the options, and not in them")
    of_factory = inspect.signature(create_optimizer_v2).parameters.keys() - keys.keys()
    if phase.name not in ("sgd", *TORCH_OPTIMIZERS) and (
        idle := sorted(of_factory & options.keys() - {"foreach"})
    ):
        raise ConfigError(
            f"{where}: {idle[0]} has no effect, as the weights are grouped before; see optim.layer_decay and "
            "optim.weight_decay, or drop it"
        )


def set_rates(optimizer: Optimizer, lr: float, momentum: float) -> None:
    """Give every group `lr` times its multiplier, and SGD's momentum, or the first beta of the Adam family.

    RMSprop is without momentum, but for that of its options.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]
        if "momentum" in group and not isinstance(optimizer, torch.optim.RMSprop):
            group["momentum"] = momentum
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])


def clip(optimizer: Optimizer, max_norm: float | None) -> Tensor:
    """Scale the gradients so that their norm over all parameters is at most `max_norm`; the norm before that.

    Returns:
        float32 [], on the gradients' device (Pascanu et al. 2013, arXiv:1211.5063); of shards, that of the whole.
    """
    learning = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm: Tensor = nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None])
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(learning, max_norm, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def carry_momentum(before: Optimizer, to: Optimizer, momentum: float) -> None:
    """Start SGD's momentum buffers from the gradient's running mean in another optimizer.

    For a constant gradient g, Adam's first moment (without its bias) is g and SGD's buffer is
    g / (1 - momentum), so that is how the one becomes the other.
    """
    for group in before.param_groups:
        for parameter in group["params"]:
            state = before.state.get(parameter, {})
            if "exp_avg" in state:
                mean = state["exp_avg"] / (1 - group["betas"][0] ** float(state["step"]))
            elif state.get("momentum_buffer") is not None:
                mean = state["momentum_buffer"] * (1 - group["momentum"])
            else:
                continue
            to.state[parameter]["momentum_buffer"] = mean / (1 - momentum)
