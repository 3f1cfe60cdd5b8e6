"""What a training is made of and what stays the same while it runs: data, order, clock, model, precision."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pipeline.common import console, seeding
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.optim import SwatsRule
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table, sampling, shared_memory
from pipeline.data.loader import build_loader, worker_count
from pipeline.data.transforms import Augmentation, CentreCrop
from pipeline.distributed import consistency, data_parallel, sync_batchnorm
from pipeline.distributed.process_group import Ranks
from pipeline.inference.linear_head import Images
from pipeline.inference.predict import Network, predict_rows
from pipeline.inference.predicting_form import predicting_form
from pipeline.models.build import build_model, without_weights
from pipeline.models.classifier import Classifier
from pipeline.models.heads import pool_by_amax
from pipeline.models.precision import Precision, has_units
from pipeline.runs import checkpoints
from pipeline.runs.history import Start
from pipeline.training import auto_batch_size, phases, preflight, probe_start, refit, resume
from pipeline.training.freezing import learn_fast
from pipeline.training.optimizer import Optimizer, build_optimizer, parameter_groups
from pipeline.training.phases import PhaseState
from pipeline.training.precision_trial import choose_precision
from pipeline.training.schedule import images_per_step, step_clock
from pipeline.training.state import Best, TrainState, restore
from pipeline.training.step import StepSettings
from pipeline.training.swats import attach_swats
from pipeline.training.weight_average import WeightAverage


class TrainingSetup:
    """Everything that a configuration fixes, on one rank."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        """Load the prepared data.

        Raises:
            DataError: the data are not prepared, or have no training image.
            ConfigError: what the configuration asks for needs validation images, and there are none.
        """
        self.config, self.ranks = config, ranks
        data = prepare.load(config)
        self.train_rows = data.training_rows(config)
        self.val_rows = np.array(data.rows("val"), np.int64)
        if not len(self.train_rows):
            raise DataError("the sample table has no training image; check the data set's official split")
        if config.needs_validation and not len(self.val_rows):  # only the data tell, see `why_no_validation`
            raise ConfigError(
                f"{config.needs_validation[0]} needs validation, and no image of the data set validates; hold some out "
                "with data.val_fraction"
            )
        self.ids = data.samples["id"].to_numpy("int64", copy=True)
        self.labels = data.labels
        self.classes, self.samples = sample_table.class_names(data.samples), sample_table.digest(data.samples)
        self.gaps, self.taxonomy = sample_table.gaps(data.samples), data.taxonomy
        consistency.check_ranks_agree(config, self.samples, ranks)
        self.clock = step_clock(config, len(self.train_rows))
        self.last_step = min(self.clock.last_step, config.train.max_steps or self.clock.last_step)
        self._check_ranks()
        workers = config.data.workers
        shared_memory.check(config, worker_count(workers, ranks), ranks, validates=len(self.val_rows) > 0)
        self.train_loader = build_loader(data, Augmentation(config.data, config.seed), workers, ranks)
        self.val_loader = build_loader(data, CentreCrop(config.data), workers, ranks)

    def is_epoch_end(self, step: int) -> bool:
        """Whether an epoch, or the whole run, is over when `step` steps have been taken."""
        return step in self.clock.starts or step >= self.last_step

    def epoch_batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """The draws (`data.sampling`) of each batch of an epoch, over all ranks: int64 arrays."""
        config = self.config
        if config.data.sampler == "class_balanced":
            order = sampling.balanced_order(self.train_rows, self.labels, config.seed, epoch)
        else:
            order = sampling.epoch_order(self.train_rows, config.seed, epoch)
        return sampling.in_batches(order, images_per_step(config, epoch))

    def _check_ranks(self) -> None:
        smallest = min(len(self.train_rows) // steps for steps in self.clock.steps)
        if smallest < self.ranks.world_size:
            raise ConfigError(
                f"optim.batch_size: a batch of {smallest} images is too small for {self.ranks.world_size} ranks; "
                "take a larger batch or fewer ranks"
            )

    def build_state(self, phase: PhaseState, in_precision: Precision, *, pretrained: bool) -> "BuiltState":
        """A state at the beginning of a phase; its weights, random or pretrained, are those of the first rank.

        Raises:
            UserError: the model, its weights or the optimizer do not exist or do not fit.
        """
        config, device = self.config, self.ranks.device
        model_config = config.model if pretrained and self.ranks.is_main else without_weights(config.model)
        torch.manual_seed(seeding.seed_of("weights", config.seed))
        model, weights = build_model(model_config, len(self.classes))
        state_dict, weights = self.ranks.broadcast((model.state_dict(), weights))
        model.load_state_dict(state_dict)
        if config.distributed.sync_batchnorm and self.ranks.world_size > 1:
            model = sync_batchnorm.synchronise(model, device)
        if config.train.deterministic and device.type == "cuda":
            pool_by_amax(model.backbone)
        ema = self._build_ema(model)
        self._move_to_device(model)
        if ema is not None:
            self._move_to_device(ema.module)
        learn_fast(config, model, in_precision)
        scaler = torch.amp.GradScaler(device.type, enabled=in_precision == "fp16")
        return BuiltState(TrainState(model, self.build_optimizer(model, phase), scaler, ema, phase), weights)

    def _build_ema(self, model: Classifier) -> WeightAverage | None:
        train, sharded = self.config.train, self.config.distributed.shard == "full"
        if not train.ema_decay:
            return None
        return WeightAverage(model, train.ema_decay, use_warmup=train.ema_warmup, foreach=not sharded)

    def _move_to_device(self, model: Classifier) -> None:
        """Move a model to this rank's device, all of it or its shard."""
        if self.config.distributed.shard == "full":  # takes parameters in the default layout alone
            data_parallel.shard(model, model.backbone, self.ranks)
        elif self.config.train.channels_last:
            model.to(memory_format=torch.channels_last)
        model.to(self.ranks.device)

    def build_optimizer(self, model: Any, state: PhaseState) -> Optimizer:
        """The optimizer of a phase, without anything remembered."""
        phase = self.config.optim.resolved_phases[state.index]
        groups = parameter_groups(model, self.config.optim, weight_decay=phase.weight_decay)
        optimizer = build_optimizer(groups, phase, lr=state.lr)
        if isinstance(phase.until, SwatsRule):
            attach_swats(optimizer, state.swats, phase.until)
        return optimizer

    def start_from_probe(self, state: TrainState, precision: Precision) -> dict[str, Any]:
        """Give a new state the head of `plumage probe`; what was chosen for it. No test image is looked at.

        Raises:
            UserError: the network does not end in one linear layer, or its features are not finite.
            Stopped: a signal came.
        """
        models = [state.model] if state.ema is None else [state.model, state.ema.module]
        probe_start.check_head(state.model)
        if state.batchnorms and not self.config.model.freeze_batchnorm:
            console.warn(
                "train.start_from=probe: in training batch norm takes the statistics of each batch, and the head was "
                "fitted on those of the pretraining; keep them with model.freeze_batchnorm=true"
            )
        rows = np.sort(np.concatenate([self.train_rows, self.val_rows]))
        features = predict_rows(
            *(self._predicting_form(state, precision), self.val_loader, rows, precision, self.ranks),
            batch_size=self.config.eval.batch_size,
            features=True,
            progress="probe",
            before_batch=partial(probe_start.stop_if_asked, self.ranks),
        ).features
        train, val = (
            Images(features[np.isin(rows, split)], self.labels[split])
            for split in (self.train_rows, self.val_rows)
        )
        refitted = self.config.train.refit
        decay = None if refitted is None else refit.head_weight_decay(refitted)
        return probe_start.start_head(models, train, val, len(self.classes), self.ranks, decay)

    def _predicting_form(self, state: TrainState, precision: Precision) -> Network:
        """The model of a state for predicting alone; in shards, which are not whole here, the model itself."""
        if self.config.distributed.shard == "full":
            return state.model
        model, _ = build_model(without_weights(self.config.model), len(self.classes))
        model.load_state_dict(state.model.state_dict())
        placed, fused = predicting_form(model.eval(), self.config, precision, self.ranks.device)
        return fused or placed

    def check_passes(
        self, state: TrainState, precision: Precision, batch_size: int | Literal["auto"]
    ) -> None:
        """Try passes of the true size and the optimizers of all phases, before the training begins (`preflight`).

        Args:
            batch_size: images computed at once, over all ranks; auto: not known yet.

        Raises:
            ConfigError: the model cannot be trained with these settings.
        """
        config, ranks = self.config, self.ranks
        share = None if batch_size == "auto" else micro_batch_size(batch_size, ranks)
        epochs = preflight.epochs_to_try(config, self.clock, len(self.train_rows), share, ranks.world_size)
        classes = len(self.classes)
        preflight.check_passes(config, ranks, state, precision, epochs, classes, self.build_optimizer)


def micro_batch_size(batch_size: int, ranks: Ranks) -> int:
    """The images that a rank computes at once, where all ranks together compute `batch_size`."""
    return -(-batch_size // ranks.world_size)


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
    history: tuple[Start, ...] = ()
    """the processes that trained the state, with this one"""

    def step_settings(self, config: Config, ranks: Ranks) -> StepSettings:
        """What is the same for every training step."""
        return StepSettings(
            seed=config.seed,
            label_smoothing=config.train.label_smoothing,
            mix=config.train.mix,
            clip_norm=config.optim.clip_norm,
            micro_batch_size=micro_batch_size(self.batch_size, ranks),
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
        checkpoint = resume.start_from(setup.config, setup.classes, setup.samples)
    checkpoint = setup.ranks.broadcast(checkpoint)
    history = resume.history(setup.config, checkpoint, setup.ranks)
    return _fresh(setup, history) if checkpoint is None else _resumed(setup, *checkpoint, history)


def _fresh(setup: TrainingSetup, history: tuple[Start, ...]) -> RunStart:
    """A new state; with `train.start_from=probe` its head is that of the linear probe."""
    config, ranks = setup.config, setup.ranks
    precision = choose_precision(config, ranks)
    state, weights = setup.build_state(phases.first(config.optim), precision, pretrained=True)
    setup.check_passes(state, precision, config.optim.batch_size)
    if config.train.start_from == "probe":
        head = setup.start_from_probe(state, precision)
        weights = {**weights, "head": head}
        if head["val_top1"] is not None:
            state.best = Best(epoch=0, step=0, top1=head["val_top1"], loss=head["val_loss"])
    batch_size = auto_batch_size.auto_batch_size(config, state.model, precision, ranks)
    return RunStart(state, weights, precision, batch_size, history)


def _resumed(
    setup: TrainingSetup, path: Path, content: dict[str, Any], history: tuple[Start, ...]
) -> RunStart:
    """The state in a checkpoint, computed as there: in its precision, and with its batch size where that fits."""
    config, ranks = setup.config, setup.ranks
    phase = checkpoints.part(content, "phase", PhaseState, path)
    precision, batch_size = content["precision"], content["batch_size"]
    state, _ = setup.build_state(phase, precision, pretrained=False)
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
        setup.check_passes(state, precision, batch_size)
        batch_size = auto_batch_size.resumed_batch_size(batch_size, config, state.model, precision, ranks)
    return RunStart(state, content["weights"], precision, batch_size, history)
