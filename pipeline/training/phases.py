"""The phases of a training (Adam, then SGD): which one a step belongs to, and at which rates it is taken.

Adam starts fast, SGD generalises (Keskar & Socher 2017, arXiv:1712.07628). A phase ends at an epoch, at a
plateau of the validation loss, or when SWATS says so. What is handed over: nothing but the weights, and with
`carry_momentum` the gradient's running mean. The schedule of the run goes on across phases; a phase with a
schedule of its own counts from its first step.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.config.optim import OptimConfig, PlateauRule, ReduceOnPlateau, ResolvedPhase, SwatsRule
from pipeline.config.schema import Config
from pipeline.training.schedule import PlateauState, StepClock, lr_at, momentum_at
from pipeline.training.swats import SwatsState, sgd_rate


class Rates(NamedTuple):
    """Learning rate and momentum of a step."""

    lr: float
    momentum: float


@dataclass
class PhaseState:
    """The current phase of a training, and what its rules remember."""

    index: int = 0
    start_step: int = 0
    lr: float = 0.0
    """learning rate at the schedule's height in this phase"""
    lowest: float = math.inf
    """validation loss of the phase's best epoch"""
    bad_epochs: int = 0
    """epochs since then"""
    swats: SwatsState = field(default_factory=SwatsState)
    plateau: PlateauState = field(default_factory=PlateauState)


def first(config: OptimConfig) -> PhaseState:
    """The state at the beginning."""
    lr = config.resolved_phases[0].lr
    assert lr is not None, "only a phase after SWATS has none of its own"
    return PhaseState(lr=lr)


def following(config: OptimConfig, state: PhaseState, step: int) -> PhaseState:
    """The state in which the next phase begins with a step."""
    phase = config.resolved_phases[state.index + 1]
    lr = phase.lr
    if lr is None:
        assert state.swats.proposed is not None, "SWATS ended the phase before"
        lr = sgd_rate(state.swats.proposed, phase.momentum)
    of_run = phase.schedule is None and config.resolved_phases[state.index].schedule is None
    plateau = state.plateau if of_run else PlateauState()
    return PhaseState(state.index + 1, step, lr, plateau=plateau)


def is_over(phase: ResolvedPhase, state: PhaseState, step: int, clock: StepClock) -> bool:
    """Whether a step no longer belongs to the phase."""
    match phase.until:
        case None:
            return False
        case PlateauRule(epochs=epochs):
            return state.bad_epochs >= epochs
        case SwatsRule():
            return state.swats.proposed is not None
        case epoch:
            return step >= clock.starts[epoch]


def observe(config: Config, state: PhaseState, loss: float) -> None:
    """Take the validation loss of an epoch: for the phase's rule, and for reduce-on-plateau."""
    phase = config.optim.resolved_phases[state.index]
    if isinstance(phase.until, PlateauRule):
        if loss < state.lowest - phase.until.min_delta:
            state.lowest, state.bad_epochs = loss, 0
        else:
            state.bad_epochs += 1
    schedule = phase.schedule or config.schedule
    if isinstance(schedule, ReduceOnPlateau):
        state.plateau.observe(schedule, loss)


def rates(config: Config, state: PhaseState, step: int, clock: StepClock) -> Rates:
    """Learning rate and momentum with which a step (from 0) is taken."""
    phase, moment = config.optim.resolved_phases[state.index], clock.moment(step)
    if phase.schedule is not None:
        if isinstance(phase.until, int):
            moment = dataclasses.replace(moment, epochs=phase.until)
        moment = moment.since(clock.moment(state.start_step).epoch)
    schedule = phase.schedule or config.schedule
    return Rates(
        lr_at(schedule, state.lr, moment, state.plateau), momentum_at(schedule, phase.momentum, moment)
    )
