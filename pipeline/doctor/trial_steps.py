"""The run's own batches and training steps, on copies of its state: on one rank alone, or on all of them."""

import copy
import dataclasses
import itertools
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data import sampling
from pipeline.data.loader import Batch
from pipeline.distributed.data_parallel import replicate
from pipeline.distributed.process_group import Ranks
from pipeline.doctor.context import CheckContext
from pipeline.doctor.products import BuiltModel
from pipeline.training import phases
from pipeline.training.compilation import compile_errors, compiled
from pipeline.training.freezing import FreezeSchedule
from pipeline.training.setup import TrainingSetup
from pipeline.training.start import RunStart, build_state, optimizer_of_phase
from pipeline.training.state import TrainState
from pipeline.training.step import StepSettings, train_step


@dataclass(frozen=True)
class FirstStep:
    """One step on this rank's share of the first batch."""

    loss: float
    """mean over the images, nats"""
    weights: list[Tensor]
    """the parameters after the step"""
    seconds: float
    images: int


@dataclass(frozen=True)
class TrialSteps:
    """Trial steps of the epoch with the largest images; the run's own state stays as it is."""

    context: CheckContext
    setup: TrainingSetup
    model: BuiltModel
    batch_size: int
    """images computed at once, over all ranks"""

    def batches(self) -> Iterator[Batch]:
        """This rank's share of the batches, from the run's own loader."""
        epoch = self.context.last_epoch
        shards = sampling.shard_batches(self.setup.epoch_batches(epoch), self.context.ranks)
        return self.setup.train_loader.batches(epoch, shards)

    def first_step(self) -> FirstStep:
        """Take the first step on this rank alone."""
        state, batch = self._state(alone=True), next(self.batches())
        images = len(batch.label)
        started = time.perf_counter()
        sums = self._step(state, state.model, batch, images, alone=True)
        loss = float(sums[0]) / images
        return FirstStep(loss, list(state.model.parameters()), time.perf_counter() - started, images)

    def loader_speed(self, most_batches: int, budget_s: float) -> float:
        """Images a second that this rank's loader serves, once its processes have started."""
        batches = itertools.chain.from_iterable(self.batches() for _ in range(2))  # an epoch may be one batch
        next(batches)
        images, started = 0, time.perf_counter()
        for batch in itertools.islice(batches, most_batches):
            images += len(batch.label)
            if time.perf_counter() - started > budget_s:
                break
        return images / (time.perf_counter() - started)

    def step_speed(self, steps: int, *, alone: bool) -> float:
        """Images a second, over the ranks that take part, of steps on one batch that is already in memory."""
        context, ranks = self.context, self._ranks(alone)
        state, batch = self._state(alone=alone), next(self.batches())
        images = len(batch.label) if alone else int(sum(ranks.all_gather(len(batch.label))))
        model: Any = compiled(state.model, context.config) if context.config.train.compile else state.model
        ddp_model = replicate(model, context.config.distributed, ranks)

        def seconds(count: int) -> float:
            started = time.perf_counter()
            for _ in range(count):
                sums = self._step(state, ddp_model, batch, images, alone=alone)
            float(sums[0])  # waits for a GPU
            return time.perf_counter() - started

        seconds(1)
        context.ranks.barrier()
        return steps * images / seconds(steps)

    def _step(
        self, state: TrainState, ddp_model: nn.Module, batch: Batch, images: int, *, alone: bool
    ) -> Tensor:
        rates = phases.rates(self.context.config, state.phase, state.step, self.setup.clock)
        with compile_errors() if self.context.config.train.compile else nullcontext():
            return train_step(state, ddp_model, batch, images, rates, self._settings(alone))

    def _ranks(self, alone: bool) -> Ranks:
        return Ranks.single(self.context.ranks.device) if alone else self.context.ranks

    def _settings(self, alone: bool) -> StepSettings:
        context = self.context
        start = RunStart(self.model.state, self.model.weights, context.precision, self.batch_size)
        settings = start.step_settings(context.config, context.ranks)
        return dataclasses.replace(settings, ranks=self._ranks(alone))

    def _state(self, *, alone: bool) -> TrainState:
        """A copy in training mode; shards cannot be copied and are rebuilt, with random weights."""
        config, precision = self.context.config, self.context.precision
        if self.context.is_sharded:
            state, _ = build_state(self.setup, phases.first(config.optim), precision, pretrained=False)
        else:
            original = self.model.single_rank_state if alone else self.model.state
            model, phase = copy.deepcopy(original.model), copy.deepcopy(original.phase)
            state = dataclasses.replace(
                original,
                model=model,
                phase=phase,
                optimizer=optimizer_of_phase(config, model, phase),
                scaler=torch.amp.GradScaler(self.context.ranks.device.type, enabled=precision == "fp16"),
                ema=copy.deepcopy(original.ema),
            )
        FreezeSchedule(config, state.model).apply(self.context.last_epoch)
        return state
