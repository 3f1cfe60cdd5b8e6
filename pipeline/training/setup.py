"""What a training is made of and what stays the same while it runs: data, order, calendar, model, precision."""

import dataclasses
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.utils.model_ema import ModelEmaV3

from pipeline.common import seeding
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.optim import SwatsRule
from pipeline.config.schema import Config
from pipeline.config.training import TrainConfig
from pipeline.data import loader, prepare, sample_table, sampling
from pipeline.data.loader import Images, Loader
from pipeline.data.prepare import training_rows
from pipeline.data.transforms import Augmentation, CentreCrop
from pipeline.distributed import consistency, data_parallel, sync_batchnorm
from pipeline.distributed.process_group import Ranks
from pipeline.models.build import build, without_weights
from pipeline.models.classifier import Classifier
from pipeline.models.precision import Precision, resolve
from pipeline.training import auto_batch_size, phases, resume
from pipeline.training.optimizer import Optimizer, build_optimizer, parameter_groups
from pipeline.training.phases import PhaseState
from pipeline.training.schedule import images_per_step, step_clock
from pipeline.training.state import TrainState, restore
from pipeline.training.step import StepSettings
from pipeline.training.swats import watch


class TrainingSetup:
    """Everything that a configuration fixes, on one rank."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        """Load the prepared data.

        Raises:
            DataError: the data are not prepared, or have no training image.
        """
        self.config, self.ranks = config, ranks
        data = prepare.load(config)
        self.train_rows = training_rows(config, data)
        self.val_rows = np.array(data.rows("val"), np.int64)
        if not len(self.train_rows):
            raise DataError("the sample table has no training image; check the data set's official split")
        self.ids = data.samples["id"].to_numpy("int64", copy=True)
        self.labels = data.samples["label"].to_numpy("int64", copy=True)
        self.classes, self.samples = sample_table.class_names(data.samples), sample_table.digest(data.samples)
        consistency.check_ranks_agree(config, self.samples, ranks)
        self.calendar = step_clock(config, len(self.train_rows))
        self._check_ranks()
        self.train_loader = self._loader(data, Augmentation(config.data, config.seed))
        self.val_loader = self._loader(data, CentreCrop(config.data))
        _choose_algorithms(config.train)

    def epoch_batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """The draws of each batch of an epoch, over all ranks."""
        config = self.config
        if config.data.sampler == "class_balanced":
            order = sampling.balanced_order(self.train_rows, self.labels, config.seed, epoch)
        else:
            order = sampling.epoch_order(self.train_rows, config.seed, epoch)
        return sampling.in_batches(order, images_per_step(config, epoch))

    def _check_ranks(self) -> None:
        smallest = min(len(self.train_rows) // steps for steps in self.calendar.steps)
        if smallest < self.ranks.world_size:
            raise ConfigError(
                f"optim.batch_size: a batch of {smallest} images is too small for {self.ranks.world_size} ranks; "
                "take a larger batch or fewer ranks"
            )

    def build_state(self, phase: PhaseState, in_precision: Precision, *, pretrained: bool) -> "Fresh":
        """A state at the beginning of a phase, its weights new or pretrained: those of the first rank.

        Raises:
            UserError: the model, its weights or the optimizer do not exist or do not fit.
        """
        config, device = self.config, self.ranks.device
        of_model = config.model if pretrained and self.ranks.is_main else without_weights(config.model)
        torch.manual_seed(seeding.seed_of("weights", config.seed))
        model, weights = build(of_model, len(self.classes))
        content, weights = self.ranks.broadcast((model.state_dict(), weights))
        model.load_state_dict(content)
        if config.distributed.sync_batchnorm and self.ranks.world_size > 1:
            model = sync_batchnorm.synchronise(model, device)
        decay, in_shards = config.train.ema_decay, config.distributed.shard == "full"
        ema = (
            ModelEmaV3(model, decay, use_warmup=config.train.ema_warmup, foreach=not in_shards)
            if decay
            else None
        )
        for one in [model] if ema is None else [model, ema.module]:
            self._move_to_device(one)
        scaler = torch.amp.GradScaler(device.type, enabled=in_precision == "fp16")
        state = TrainState(model, self.build_optimizer(model, phase), scaler, ema, phase)
        return Fresh(state, weights)

    def _move_to_device(self, model: Classifier) -> None:
        """Move a model to this rank's device, all of it or its shard."""
        if self.config.distributed.shard == "full":
            data_parallel.shard(
                model, model.backbone, self.ranks
            )  # which takes parameters in the default layout alone
        elif self.config.train.channels_last:
            model.to(memory_format=torch.channels_last)
        model.to(self.ranks.device)

    def build_optimizer(self, model: Any, state: PhaseState) -> Optimizer:
        """The optimizer of a phase, without anything remembered."""
        phase = self.config.optim.resolved_phases[state.index]
        assert phase.weight_decay is not None, "resolved"
        groups = parameter_groups(model, self.config.optim, weight_decay=phase.weight_decay)
        optimizer = build_optimizer(groups, phase, lr=state.lr)
        if isinstance(phase.until, SwatsRule):
            watch(optimizer, state.swats, phase.until)
        return optimizer

    def _loader(self, data: prepare.Prepared, view: Augmentation | CentreCrop) -> Loader:
        images = Images(data.store, self.labels, view)
        return Loader(images, loader.worker_count(self.config.data.workers, self.ranks), self.ranks.device)


@dataclasses.dataclass
class Fresh:
    """A state, and where its first weights came from."""

    state: TrainState
    weights: dict[str, Any]


@dataclasses.dataclass
class Start:
    """A state to go on from, and what was decided once for the whole run."""

    state: TrainState
    weights: dict[str, Any]
    """where the first weights came from"""
    precision: Precision
    batch_size: int
    """images computed at once, over all ranks"""

    def step_settings(self, config: Config, ranks: Ranks) -> StepSettings:
        """How each step learns."""
        return StepSettings(
            config.seed,
            config.train.label_smoothing,
            config.train.mix,
            config.optim.clip_norm,
            max(1, self.batch_size // ranks.world_size),
            self.precision,
            ranks,
        )


def resume_or_start(job: TrainingSetup) -> Start:
    """A fresh state, or that of the checkpoint from which the run goes on.

    Raises:
        UserError: model, weights or optimizer do not fit, or the checkpoint is of another run.
    """
    config, ranks = job.config, job.ranks
    before = ranks.broadcast(resume.start_from(config, job.classes, job.samples) if ranks.is_main else None)
    if before is None:
        resolved = ranks.broadcast(resolve(config.train.precision, ranks.device))
        fresh = job.build_state(phases.first(config.optim), resolved, pretrained=True)
        batch_size = auto_batch_size.auto_batch_size(config, fresh.state.model, resolved, ranks)
        return Start(fresh.state, fresh.weights, resolved, batch_size)
    path, content = before
    phase = PhaseState.load(content["phase"])
    fresh = job.build_state(phase, content["precision"], pretrained=False)
    restore(fresh.state, content, path)
    lr = config.optim.resolved_phases[phase.index].lr
    if lr is not None:  # with train.resume_force it may be another one
        fresh.state.phase.lr = lr
    return Start(fresh.state, content["weights"], content["precision"], content["batch_size"])


def _choose_algorithms(config: TrainConfig) -> None:
    torch.backends.cudnn.benchmark = not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(config.deterministic)
