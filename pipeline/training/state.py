"""`TrainState`, the content of a checkpoint made from it, and the way back.

A checkpoint holds tensors and plain types only and is read with `weights_only=True`. Order, augmentation and
dropout are functions of (seed, step), so a checkpoint has no random state.
"""

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.common.errors import CheckpointError, name_some
from pipeline.distributed import data_parallel
from pipeline.distributed.process_group import Ranks
from pipeline.distributed.sync_batchnorm import BatchNorm, batchnorms
from pipeline.models.classifier import Classifier
from pipeline.models.pretrained import load_weights, not_finite
from pipeline.runs import checkpoints
from pipeline.training.optimizer import saved_order
from pipeline.training.phases import PhaseState
from pipeline.training.weight_average import WeightAverage


@dataclass
class Totals:
    """Sums over the images of the epoch in progress."""

    loss: float = 0.0
    correct: float = 0.0
    gradient_norm: float = 0.0
    """a sum over the steps that were not skipped"""
    seen: int = 0
    steps: int = 0
    skipped_steps: int = 0
    """of fp16: their gradients were not finite at the scale of the loss"""
    is_closed: bool = False
    """the run ended within the epoch, at `train.max_steps`, and was validated there"""

    @property
    def is_open(self) -> bool:
        """Whether steps were taken that no record of an epoch has."""
        return self.seen > 0 and not self.is_closed

    @property
    def mean_gradient_norm(self) -> float:
        """Over the steps that were not skipped; nan where all were."""
        taken = self.steps - self.skipped_steps
        return self.gradient_norm / taken if taken else math.nan


@dataclass
class Best:
    """The epoch (from 1) that validation chose, or the last one when there is no validation; 0: before the first."""

    epoch: int
    step: int
    top1: float | None = None
    loss: float | None = None

    def beats(self, other: "Best | None") -> bool:
        """Higher top-1 wins; of equals, the lower loss; without validation, the later epoch."""
        if other is None or self.top1 is None or other.top1 is None:
            return True
        return self.rank > other.rank

    @property
    def rank(self) -> tuple[float, float]:
        """By which validations are ordered, the best one highest: top-1, then the lower loss."""
        return self.top1 or 0.0, -(self.loss or 0.0)


@dataclass
class TrainState:
    """Everything that changes while training: one save, one load."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: WeightAverage | None
    phase: PhaseState
    step: int = 0
    totals: Totals = field(default_factory=Totals)
    best: Best | None = None

    @cached_property
    def batchnorms(self) -> list[BatchNorm]:
        """The batch norms of the model, frozen or not; looked up once, as each step asks for them."""
        return batchnorms(self.model)

    @property
    def eval_model(self) -> Classifier:
        """The model that is validated and evaluated: the average of the weights (EMA), if there is one."""
        return self.ema.module if self.ema is not None else self.model


def checkpoint_content(
    state: TrainState, epoch: int, run_facts: dict[str, Any], ranks: Ranks
) -> dict[str, Any]:
    """The content of a checkpoint; shards are gathered on the first rank, so all ranks have to call it.

    Args:
        epoch: epochs completed.
        run_facts: plain types: `config`, `classes`, `samples` (the digest of the sample table), `precision`,
            `batch_size`, `weights` (where the first ones came from), `history` (the processes that trained).
    """
    content: dict[str, Any] = {
        "format": checkpoints.FORMAT,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "ema": None if state.ema is None else state.ema.module.state_dict(),
        "phase": asdict(state.phase),
        "epoch": epoch,
        "step": state.step,
        "totals": vars(state.totals),
        "best": None if state.best is None else vars(state.best),
        **run_facts,
    }
    return data_parallel.gather_full_tensors(content, keep=ranks.is_main)


def restore(state: TrainState, content: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's content into a state that was built for the checkpoint's phase.

    Raises:
        CheckpointError: it is damaged, or its weights are of another model, or not finite.
    """
    if wrong := [*not_finite(content["model"]), *not_finite(content["ema"] or {})]:
        raise CheckpointError(
            f"{path}: its training has diverged, and numbers are not finite, in {name_some(wrong)}; lower optim.lr and "
            "start with train.resume=never, which puts the run aside, or go on from an earlier one: train.resume=PATH"
        )
    load_weights(state.model, content["model"], content, path)
    if state.ema is not None:
        load_weights(state.eval_model, content["ema"], content, path)
    try:
        _restore_optimizer(state, content["optimizer"])
        state.scaler.load_state_dict(content["scaler"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: the state of its optimizer does not fit ({type(error).__name__}: {error}); {checkpoints.ANOTHER}"
        ) from error
    state.step = content["step"]
    state.totals = checkpoints.part(content, "totals", Totals, path)
    state.best = checkpoints.part(content, "best", Best | None, path)


def _restore_optimizer(state: TrainState, saved: dict[str, Any]) -> None:
    new_groups = state.optimizer.state_dict()["param_groups"]
    # They are the configuration's and, how a step is computed, this device's; all else is state.
    settings = ("params", "weight_decay", "lr_multiplier", "nesterov", "foreach", "fused")
    groups = [
        {**group, **{key: new[key] for key in settings if key in new}}
        for group, new in zip(saved["param_groups"], new_groups, strict=True)
    ]
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    numbers = {parameter: number for number, parameter in enumerate(parameters)}
    saved_parameters = saved_order(state.model, state.optimizer, saved["param_groups"])
    moments = {
        numbers[parameter]: {
            name: _laid_out_like(data_parallel.shard_like(value, parameter), parameter)
            for name, value in saved["state"][number].items()
        }
        for number, parameter in enumerate(saved_parameters)
        if number in saved["state"]
    }
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _laid_out_like(value: Any, parameter: Tensor) -> Any:
    """A tensor of a parameter's shape with its strides too, as fused kernels need it; anything else as it is."""
    if isinstance(value, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    if value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
