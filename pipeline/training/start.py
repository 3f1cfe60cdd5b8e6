"""What a training starts with: a new state or that of a checkpoint, its precision and its batch size."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from pipeline.common import console, seeding
from pipeline.config.optim import SwatsRule
from pipeline.config.schema import Config
from pipeline.distributed import data_parallel, sync_batchnorm
from pipeline.distributed.process_group import Ranks
from pipeline.inference.linear_head import Images
from pipeline.inference.predict import Network, predict_rows
from pipeline.inference.predicting_form import predicting_form
from pipeline.models.build import build_model, without_weights
from pipeline.models.classifier import Classifier
from pipeline.models.heads import pool_by_amax
from pipeline.models.precision import Precision, has_units
from pipeline.runs import checkpoints
from pipeline.runs.history import TrainingProcess
from pipeline.training import auto_batch_size, phases, preflight, probe_start, refit, resume
from pipeline.training.freezing import learn_fast
from pipeline.training.optimizer import Optimizer, build_optimizer, parameter_groups
from pipeline.training.phases import PhaseState
from pipeline.training.precision_trial import choose_precision
from pipeline.training.setup import TrainingSetup
from pipeline.training.state import Best, TrainState, restore
from pipeline.training.step import StepSettings, largest_share
from pipeline.training.swats import attach_swats
from pipeline.training.weight_average import WeightAverage


class BuiltState(NamedTuple):
    """A state, and where its first weights came from (source, tensors, share loaded)."""

    state: TrainState
    weights: dict[str, Any]


@dataclass(frozen=True)
class RunStart:
    """The state to go on from, and what is decided once for the whole run."""

    state: TrainState
    weights: dict[str, Any]
    """where the first weights came from"""
    precision: Precision
    batch_size: int
    """images computed at once, over all ranks"""
    history: tuple[TrainingProcess, ...] = ()
    """the processes that trained the state, with this one"""

    def step_settings(self, config: Config, ranks: Ranks) -> StepSettings:
        """What is the same for every training step."""
        return StepSettings(
            seed=config.seed,
            label_smoothing=config.train.label_smoothing,
            mix=config.train.mix,
            clip_norm=config.optim.clip_norm,
            micro_batch_size=largest_share(self.batch_size, ranks.world_size),
            precision=self.precision,
            ranks=ranks,
        )


def resume_or_start(setup: TrainingSetup) -> RunStart:
    """A new state, or that of the checkpoint from which the run goes on.

    Raises:
        UserError: model, weights or optimizer do not fit, or the checkpoint is of another run.
    """
    checkpoint = None
    if setup.ranks.is_main:
        checkpoint = resume.checkpoint_to_resume(setup.config, setup.classes, setup.samples)
    checkpoint = setup.ranks.broadcast(checkpoint)
    history = resume.history(setup.config, checkpoint, setup.ranks)
    return _fresh(setup, history) if checkpoint is None else _resumed(setup, *checkpoint, history)


def _fresh(setup: TrainingSetup, history: tuple[TrainingProcess, ...]) -> RunStart:
    """A new state; with `train.start_from=probe` its head is that of the linear probe."""
    config, ranks = setup.config, setup.ranks
    precision = choose_precision(config, ranks)
    state, weights = build_state(setup, phases.first(config.optim), precision, pretrained=True)
    check_passes(setup, state, precision, config.optim.batch_size)
    if config.train.start_from == "probe":
        head = _start_from_probe(setup, state, precision)
        weights = {**weights, "head": head}
        if head["val_top1"] is not None:
            state.best = Best(epoch=0, step=0, top1=head["val_top1"], loss=head["val_loss"])
    batch_size = auto_batch_size.auto_batch_size(config, state.model, precision, ranks)
    return RunStart(state, weights, precision, batch_size, history)


def _resumed(
    setup: TrainingSetup, path: Path, content: dict[str, Any], history: tuple[TrainingProcess, ...]
) -> RunStart:
    """The state in a checkpoint, computed as there: in its precision, and with its batch size where that fits."""
    config, ranks = setup.config, setup.ranks
    phase = checkpoints.part(content, "phase", PhaseState, path)
    precision, batch_size = content["precision"], content["batch_size"]
    state, _ = build_state(setup, phase, precision, pretrained=False)
    restore(state, content, path)
    lr = config.optim.resolved_phases[phase.index].lr
    if lr is not None:  # train.resume_force may have changed it
        state.phase.lr = lr
    if config.train.precision in ("auto", "fastest") and not has_units(precision, ranks.device):
        console.warn(
            f"train.precision: {config.train.precision} goes on in {precision}, in which the run began; this processor "
            "has no units for it, and is slow in it"
        )
    if state.step < setup.last_step:
        check_passes(setup, state, precision, batch_size)
        batch_size = auto_batch_size.resumed_batch_size(batch_size, config, state.model, precision, ranks)
    return RunStart(state, content["weights"], precision, batch_size, history)


def build_state(
    setup: TrainingSetup, phase: PhaseState, in_precision: Precision, *, pretrained: bool
) -> BuiltState:
    """A state at the beginning of a phase; its weights, random or pretrained, are those of the first rank.

    Raises:
        UserError: the model, its weights or the optimizer do not exist or do not fit.
    """
    config, ranks, device = setup.config, setup.ranks, setup.ranks.device
    model_config = config.model if pretrained and ranks.is_main else without_weights(config.model)
    torch.manual_seed(seeding.seed_of("weights", config.seed))
    model, weights = build_model(model_config, len(setup.classes))
    state_dict, weights = ranks.broadcast((model.state_dict(), weights))
    model.load_state_dict(state_dict)
    if config.distributed.sync_batchnorm and ranks.world_size > 1:
        model = sync_batchnorm.synchronise(model, device)
    if config.train.deterministic and device.type == "cuda":
        pool_by_amax(model.backbone)
    ema = _build_ema(config, model)
    _move_to_device(config, ranks, model)
    if ema is not None:
        _move_to_device(config, ranks, ema.module)
    learn_fast(config, model, in_precision)
    scaler = torch.amp.GradScaler(device.type, enabled=in_precision == "fp16")
    optimizer = optimizer_of_phase(config, model, phase)
    return BuiltState(TrainState(model, optimizer, scaler, ema, phase), weights)


def _build_ema(config: Config, model: Classifier) -> WeightAverage | None:
    train, sharded = config.train, config.distributed.shard == "full"
    if not train.ema_decay:
        return None
    return WeightAverage(model, train.ema_decay, use_warmup=train.ema_warmup, foreach=not sharded)


def _move_to_device(config: Config, ranks: Ranks, model: Classifier) -> None:
    """Move a model to a rank's device, all of it or its shard."""
    if config.distributed.shard == "full":  # takes parameters in the default layout alone
        data_parallel.shard(model, model.backbone, ranks)
    elif config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    model.to(ranks.device)


def optimizer_of_phase(config: Config, model: Any, state: PhaseState) -> Optimizer:
    """The optimizer of a phase, without anything remembered."""
    phase = config.optim.resolved_phases[state.index]
    groups = parameter_groups(model, config.optim, weight_decay=phase.weight_decay)
    optimizer = build_optimizer(groups, phase, lr=state.lr)
    if isinstance(phase.until, SwatsRule):
        attach_swats(optimizer, state.swats, phase.until)
    return optimizer


def _start_from_probe(setup: TrainingSetup, state: TrainState, precision: Precision) -> dict[str, Any]:
    """Give a new state the head of `plumage probe`; what was chosen for it. No test image is looked at.

    Raises:
        UserError: the network does not end in one linear layer, or its features are not finite.
        Stopped: a signal came.
    """
    models = [state.model] if state.ema is None else [state.model, state.ema.module]
    probe_start.check_head(state.model)
    if state.batchnorms and not setup.config.model.freeze_batchnorm:
        console.warn(
            "train.start_from=probe: in training batch norm takes the statistics of each batch, and the head was "
            "fitted on those of the pretraining; keep them with model.freeze_batchnorm=true"
        )
    rows = np.sort(np.concatenate([setup.train_rows, setup.val_rows]))
    features = predict_rows(
        *(_predicting_form(setup, state, precision), setup.val_loader, rows, precision, setup.ranks),
        batch_size=setup.config.eval.batch_size,
        features=True,
        progress="probe",
        before_batch=partial(probe_start.stop_if_asked, setup.ranks),
    ).features
    train, val = (
        Images(features[np.isin(rows, split)], setup.labels[split])
        for split in (setup.train_rows, setup.val_rows)
    )
    refitted = setup.config.train.refit
    decay = None if refitted is None else refit.head_weight_decay(refitted)
    return probe_start.start_head(models, train, val, len(setup.classes), setup.ranks, decay)


def _predicting_form(setup: TrainingSetup, state: TrainState, precision: Precision) -> Network:
    """The model of a state for predicting alone; in shards, which are not whole here, the model itsetup."""
    if setup.config.distributed.shard == "full":
        return state.model
    model, _ = build_model(without_weights(setup.config.model), len(setup.classes))
    model.load_state_dict(state.model.state_dict())
    placed, fused = predicting_form(model.eval(), setup.config, precision, setup.ranks.device)
    return fused or placed


def check_passes(
    setup: TrainingSetup, state: TrainState, precision: Precision, batch_size: int | Literal["auto"]
) -> None:
    """Try passes of the true size and the optimizers of all phases, before the training begins (`preflight`).

    Args:
        batch_size: images computed at once, over all ranks; auto: not known yet.

    Raises:
        ConfigError: the model cannot be trained with these settings.
    """
    config, ranks = setup.config, setup.ranks
    share = None if batch_size == "auto" else largest_share(batch_size, ranks.world_size)
    epochs = preflight.epochs_to_try(config, setup.clock, len(setup.train_rows), share, ranks.world_size)
    classes = len(setup.classes)
    preflight.check_passes(
        config, ranks, state, precision, epochs, classes, partial(optimizer_of_phase, config)
    )
