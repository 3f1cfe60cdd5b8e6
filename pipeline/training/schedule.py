"""Learning rate and momentum as functions of the step: nothing to save, nothing to restore.

Only reduce-on-plateau looks at what training did; what it remembers is `PlateauState`.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from pipeline.config.optim import (
    Constant,
    Cosine,
    Exponential,
    MultiStep,
    OneCycle,
    Polynomial,
    ReduceOnPlateau,
    ScheduleConfig,
    Step,
)
from pipeline.config.schema import Config
from pipeline.data import sampling

ROUNDING = 1e-9  # epochs: a moment so little before a milestone is at it


@dataclass(frozen=True)
class TrainTime:
    """The moment at which a step is taken, in epochs."""

    epoch: float
    """epochs that are over, from 0"""
    width: float
    """epochs that the step takes: 1 / steps per epoch"""
    epochs: float
    """length of what the schedule spans"""

    @property
    def done(self) -> float:
        """Share of the span that is over, 0..1."""
        return min(1.0, self.epoch / self.epochs)

    def since(self, start: float) -> "TrainTime":
        """The same moment, in a span that begins at epoch `start` and ends where this one does."""
        return TrainTime(self.epoch - start, self.width, max(self.epochs - start, self.width))


@dataclass(frozen=True)
class StepClock:
    """How many steps each epoch takes, and so where a step lies."""

    steps: tuple[int, ...]
    """of each epoch"""
    starts: tuple[int, ...] = field(init=False)
    """the step at which each epoch begins, and the one after the last"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", (0, *accumulate(self.steps)))

    @property
    def last_step(self) -> int:
        """Steps of the whole training."""
        return self.starts[-1]

    def epoch(self, step: int) -> int:
        """The epoch (from 0) to which a step belongs; beyond the last step, the number of epochs."""
        return bisect_right(self.starts, step) - 1

    def epochs_begun(self, step: int) -> int:
        """The number of epochs that have begun when `step` steps have been taken."""
        return self.epoch(step - 1) + 1 if step else 0

    def moment(self, step: int) -> TrainTime:
        """The moment of a step (from 0)."""
        epoch = min(self.epoch(step), len(self.steps) - 1)
        width = 1 / self.steps[epoch]
        return TrainTime(epoch + (step - self.starts[epoch]) * width, width, len(self.steps))


@dataclass
class PlateauState:
    """What reduce-on-plateau remembers; as torch.optim.lr_scheduler.ReduceLROnPlateau has it."""

    factor: float = 1.0
    """the learning rate now over that without any drop"""
    best: float = math.inf
    bad_epochs: int = 0
    cooldown: int = 0

    def observe(self, schedule: ReduceOnPlateau, loss: float) -> None:
        """Take the validation loss of an epoch, and drop the rate when it has not fallen for too long."""
        if loss < self.best * (1 - schedule.threshold):
            self.best, self.bad_epochs = loss, 0
        else:
            self.bad_epochs += 1
        if self.cooldown:
            self.cooldown, self.bad_epochs = self.cooldown - 1, 0
        if self.bad_epochs > schedule.patience_epochs:
            self.factor = max(self.factor * schedule.gamma, schedule.min_factor)
            self.cooldown, self.bad_epochs = schedule.cooldown_epochs, 0


def lr_at(
    schedule: ScheduleConfig, lr: float, moment: TrainTime, plateau: PlateauState | None = None
) -> float:
    """The learning rate with which a step is taken.

    Warm-up is linear (Goyal et al. 2017, arXiv:1706.02677): its first step already moves, its last
    has the full rate. Cosine and polynomial take what is left after it; milestones count from the start.

    Args:
        lr: the rate at the schedule's height.
        plateau: the state of reduce-on-plateau; None: it has not dropped.
    """
    if moment.epoch < schedule.warmup_epochs:
        return lr * min(1.0, (moment.epoch + moment.width) / schedule.warmup_epochs)
    epoch = moment.epoch + ROUNDING
    match schedule:
        case Constant():
            factor = 1.0
        case Step(every_epochs=every, gamma=gamma):
            factor = gamma ** (epoch // every)
        case MultiStep(milestones=milestones):
            factor = math.prod(g for m, g in zip(milestones, drops(schedule), strict=True) if epoch >= m)
        case Exponential(gamma=gamma):
            factor = gamma**moment.epoch
        case Cosine():
            factor = _cosine(schedule, moment.since(schedule.warmup_epochs))
        case Polynomial(power=power, final_factor=final):
            factor = final + (1 - final) * (1 - moment.since(schedule.warmup_epochs).done) ** power
        case OneCycle(initial_factor=initial, final_factor=final):
            rise, fall = _one_cycle(schedule, moment)
            factor = _ease(initial, 1, rise) if fall <= 0 else _ease(1, final, fall)
        case ReduceOnPlateau():
            factor = plateau.factor if plateau else 1.0
    return lr * factor


def momentum_at(schedule: ScheduleConfig, momentum: float, moment: TrainTime) -> float:
    """The momentum with which a step is taken.

    Its warm-up rises linearly from `momentum_start`, where the first step is, to `momentum`: a momentum
    that is high at once adds up the large and changing gradients of the first steps.
    """
    if moment.epoch < schedule.momentum_warmup_epochs:
        done = moment.epoch / schedule.momentum_warmup_epochs
        return schedule.momentum_start + (momentum - schedule.momentum_start) * done
    if isinstance(schedule, OneCycle):
        rise, fall = _one_cycle(schedule, moment)
        low = schedule.momentum_low
        return _ease(momentum, low, rise) if fall <= 0 else _ease(low, momentum, fall)
    return momentum


def drops(schedule: MultiStep) -> Sequence[float]:
    """The factor of each milestone."""
    gamma = schedule.gamma
    return gamma if isinstance(gamma, tuple) else (gamma,) * len(schedule.milestones)


def _ease(start: float, end: float, done: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _cosine(schedule: Cosine, moment: TrainTime) -> float:
    """SGDR (Loshchilov & Hutter 2017, arXiv:1608.03983): cycles of growing length, the last one as it falls."""
    length, epoch = schedule.restart_epochs or moment.epochs, moment.epoch
    if schedule.restart_epochs:
        while epoch + ROUNDING >= length:
            epoch, length = max(0.0, epoch - length), length * schedule.restart_multiplier
    return _ease(1, schedule.final_factor, min(1.0, epoch / length))


def _one_cycle(schedule: OneCycle, moment: TrainTime) -> tuple[float, float]:
    """How far the rise is, and the fall after it; 0..1 (Smith & Topin 2018, arXiv:1708.07120, as torch has it)."""
    peak = schedule.warmup_fraction * moment.epochs - moment.width
    end = moment.epochs - moment.width
    return min(1.0, moment.epoch / peak) if peak > 0 else 1.0, min(1.0, (moment.epoch - peak) / (end - peak))


def images_per_step(config: Config, epoch: int) -> int:
    """Images that a step of an epoch (from 0) learns from."""
    stage = config.data.stage(epoch)
    return (stage and stage.images_per_step) or config.optim.images_per_step


def step_clock(config: Config, images: int) -> StepClock:
    """The steps of each epoch over a number of training images."""
    epochs = range(config.train.epochs)
    return StepClock(
        tuple(sampling.steps_per_epoch(images, images_per_step(config, epoch)) for epoch in epochs)
    )
