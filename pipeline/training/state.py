"""`TrainState`, the content of a checkpoint made from it, and the way back.

A checkpoint holds tensors and plain types only and is read with `weights_only=True`. Order, augmentation and
dropout are functions of (seed, step), so a checkpoint has no random state.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3

from pipeline.common.errors import CheckpointError, name_some
from pipeline.distributed import data_parallel
from pipeline.distributed.process_group import Ranks
from pipeline.models.classifier import Classifier
from pipeline.models.pretrained import load_weights, not_finite
from pipeline.runs.checkpoints import FORMAT
from pipeline.training.phases import PhaseState


@dataclass
class Totals:
    """Sums over the images of the epoch in progress."""

    loss: float = 0.0
    correct: float = 0.0
    gradient_norm: float = 0.0
    """a sum over steps"""
    seen: int = 0
    steps: int = 0


@dataclass
class Best:
    """The epoch (from 1) that validation chose, or the last one when there is no validation."""

    epoch: int
    step: int
    top1: float | None = None
    loss: float | None = None

    def beats(self, other: "Best | None") -> bool:
        """Higher top-1 wins; of equals, the lower loss; without validation, the later epoch."""
        if other is None or self.top1 is None or other.top1 is None:
            return True
        return (self.top1, -(self.loss or 0.0)) > (other.top1, -(other.loss or 0.0))


@dataclass
class TrainState:
    """Everything that changes while training: one save, one load."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None
    phase: PhaseState
    step: int = 0
    totals: Totals = field(default_factory=Totals)
    best: Best | None = None

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
            `batch_size`, `weights` (where the first ones came from).
    """
    content: dict[str, Any] = {
        "format": FORMAT,
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
        CheckpointError: its weights are of another model, or not finite.
    """
    if wrong := [*not_finite(content["model"]), *not_finite(content["ema"] or {})]:
        raise CheckpointError(
            f"{path}: its training has diverged, and numbers are not finite, in {name_some(wrong)}; lower optim.lr and "
            "start with train.resume=never, which puts the run aside, or go on from an earlier one: train.resume=PATH"
        )
    load_weights(state.model, content["model"], content, path)
    if state.ema is not None:
        load_weights(state.eval_model, content["ema"], content, path)
    new_groups, saved = state.optimizer.state_dict()["param_groups"], content["optimizer"]
    settings = ("params", "weight_decay", "lr_multiplier")  # they are the configuration's; all else is state
    groups = [
        {**group, **{key: new[key] for key in settings}}
        for group, new in zip(saved["param_groups"], new_groups, strict=True)
    ]
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {name: data_parallel.shard_like(value, parameters[number]) for name, value in values.items()}
        for number, values in saved["state"].items()
    }
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.scaler.load_state_dict(content["scaler"])
    state.step = content["step"]
    state.totals = Totals(**content["totals"])
    state.best = content["best"] and Best(**content["best"])
