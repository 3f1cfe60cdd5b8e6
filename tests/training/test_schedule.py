"""Learning rates in closed form, and step by step against those of torch."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

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
from pipeline.training.schedule import PlateauState, StepClock, TrainTime, lr_at, momentum_at

SPE, EPOCHS = 7, 12
STEPS = SPE * EPOCHS
CALENDAR = StepClock((SPE,) * EPOCHS)


def rates(schedule: ScheduleConfig, lr: float = 0.4) -> list[float]:
    return [lr_at(schedule, lr, CALENDAR.moment(step)) for step in range(STEPS)]


def momenta(schedule: ScheduleConfig, momentum: float = 0.9) -> list[float]:
    return [momentum_at(schedule, momentum, CALENDAR.moment(step)) for step in range(STEPS)]


def rates_of_torch(
    make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], lr: float = 0.4
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, found = make(optimizer), []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_a_constant_schedule_stays() -> None:
    assert rates(Constant()) == [0.4] * STEPS


def test_a_linear_warm_up_ends_at_the_full_rate() -> None:
    found = rates(Constant(warmup_epochs=2))
    assert found[:3] == pytest.approx([0.4 / 14, 0.8 / 14, 1.2 / 14])
    assert found[12] == pytest.approx(0.4 * 13 / 14)
    assert found[13:] == pytest.approx([0.4] * (STEPS - 13))


@pytest.mark.parametrize(
    ("warmup_epochs", "factors"),
    [(0.5, [1 / 3.5, 2 / 3.5, 3 / 3.5, 1, 1]), (1 / 7, [1, 1]), (0.01, [1, 1])],
)
def test_a_warm_up_of_part_of_an_epoch_never_exceeds_the_full_rate(
    warmup_epochs: float, factors: list[float]
) -> None:
    found = rates(Constant(warmup_epochs=warmup_epochs))
    assert found[: len(factors)] == pytest.approx([0.4 * factor for factor in factors])


def test_warm_up_is_that_of_torch() -> None:
    expected = rates_of_torch(
        lambda optimizer: lr_scheduler.LinearLR(optimizer, start_factor=1 / 21, total_iters=20)
    )
    assert rates(Constant(warmup_epochs=3)) == pytest.approx(expected)


def test_steps_fall_at_their_epochs() -> None:
    found = rates(MultiStep(milestones=(3, 8), gamma=0.1))
    assert found == pytest.approx([0.4] * 21 + [0.04] * 35 + [0.004] * 28)


def test_each_step_can_have_a_factor_of_its_own() -> None:
    found = rates(MultiStep(milestones=(3, 8, 9), gamma=(0.5, 0.5, 0.2)))
    assert found == pytest.approx([0.4] * 21 + [0.2] * 35 + [0.1] * 7 + [0.02] * 21)


def test_steps_are_those_of_torch() -> None:
    expected = rates_of_torch(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [21, 56], 0.3))
    assert rates(MultiStep(milestones=(3, 8), gamma=0.3)) == pytest.approx(expected)


@pytest.mark.parametrize("final_factor", [0.0, 0.1])
def test_cosine_at_its_quarters(final_factor: float) -> None:
    found = rates(Cosine(final_factor=final_factor))
    span = 1 - final_factor
    assert found[0] == pytest.approx(0.4)
    assert found[21] == pytest.approx(0.4 * (final_factor + span * (2 + math.sqrt(2)) / 4))
    assert found[42] == pytest.approx(0.4 * (final_factor + span / 2))
    assert found[63] == pytest.approx(0.4 * (final_factor + span * (2 - math.sqrt(2)) / 4))
    assert lr_at(Cosine(final_factor=final_factor), 0.4, CALENDAR.moment(STEPS)) == pytest.approx(
        0.4 * final_factor
    )


@pytest.mark.parametrize("final_factor", [0.0, 0.1])
def test_cosine_is_that_of_torch(final_factor: float) -> None:
    expected = rates_of_torch(
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS, 0.4 * final_factor)
    )
    assert rates(Cosine(final_factor=final_factor)) == pytest.approx(expected)


def test_cosine_after_a_warm_up_is_that_of_torch() -> None:
    expected = rates_of_torch(
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [
                lr_scheduler.LinearLR(optimizer, start_factor=1 / 14, total_iters=13),
                lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 14),
            ],
            [14],
        )
    )
    assert rates(Cosine(warmup_epochs=2)) == pytest.approx(expected)


def test_a_step_beyond_the_end_has_the_final_rate() -> None:
    assert lr_at(Cosine(final_factor=0.1), 0.4, CALENDAR.moment(STEPS + 5)) == pytest.approx(0.04)


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), MultiStep(milestones=(3,))])
def test_a_warm_up_as_long_as_the_training_only_rises(schedule: ScheduleConfig) -> None:
    found = rates(schedule.model_copy(update={"warmup_epochs": 12.0}))
    assert found == pytest.approx([0.4 * (step + 1) / STEPS for step in range(STEPS)])


def test_a_step_schedule_is_that_of_torch() -> None:
    expected = rates_of_torch(lambda optimizer: lr_scheduler.StepLR(optimizer, 3 * SPE, 0.5))
    assert rates(Step(every_epochs=3, gamma=0.5)) == pytest.approx(expected)


def test_exponential_is_that_of_torch_taken_step_by_step() -> None:
    expected = rates_of_torch(lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.8 ** (1 / SPE)))
    found = rates(Exponential(gamma=0.8))
    assert found == pytest.approx(expected)
    assert found[2 * SPE] == pytest.approx(0.4 * 0.64)


@pytest.mark.parametrize("power", [1.0, 0.9, 2.0])
def test_polynomial_is_that_of_torch(power: float) -> None:
    expected = rates_of_torch(lambda optimizer: lr_scheduler.PolynomialLR(optimizer, STEPS, power))
    assert rates(Polynomial(power=power)) == pytest.approx(expected)
    assert lr_at(Polynomial(power=power, final_factor=0.1), 0.4, CALENDAR.moment(STEPS)) == pytest.approx(
        0.04
    )


@pytest.mark.parametrize("multiplier", [1, 2])
def test_cosine_with_restarts_is_that_of_torch(multiplier: int) -> None:
    expected = rates_of_torch(
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2 * SPE, multiplier, 0.04)
    )
    schedule = Cosine(restart_epochs=2, restart_multiplier=multiplier, final_factor=0.1)
    found = rates(schedule)
    assert found == pytest.approx(expected)
    assert found[2 * SPE] == pytest.approx(0.4)  # restarted


@pytest.mark.parametrize("warmup_fraction", [0.3, 0.5])
def test_one_cycle_is_that_of_torch_in_rate_and_momentum(warmup_fraction: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(
        optimizer, 0.4, STEPS, pct_start=warmup_fraction, base_momentum=0.85, max_momentum=0.9
    )
    lrs, torchs_momenta = [], []
    for _ in range(STEPS):
        lrs.append(optimizer.param_groups[0]["lr"])
        torchs_momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if len(lrs) < STEPS:
            scheduler.step()
    schedule = OneCycle(warmup_fraction=warmup_fraction)
    assert rates(schedule) == pytest.approx(lrs)
    assert momenta(schedule) == pytest.approx(torchs_momenta)


def test_momentum_rises_linearly_from_its_start() -> None:
    schedule = Constant(momentum_warmup_epochs=2, momentum_start=0.1)
    found = momenta(schedule)
    assert found[:3] == pytest.approx([0.1, 0.1 + 0.8 / 14, 0.1 + 1.6 / 14])
    assert found[7] == pytest.approx(0.5)
    assert found[14:] == [0.9] * (STEPS - 14)
    assert momenta(Constant()) == [0.9] * STEPS


@pytest.mark.parametrize(
    "options", [{}, {"patience_epochs": 1}, {"cooldown_epochs": 2, "patience_epochs": 0}]
)
def test_reduce_on_plateau_is_that_of_torch(options: dict[str, int]) -> None:
    schedule = ReduceOnPlateau(**{"gamma": 0.5, "patience_epochs": 2, "min_factor": 0.05, **options})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        factor=0.5,
        patience=schedule.patience_epochs,
        cooldown=schedule.cooldown_epochs,
        min_lr=0.02,
        eps=0,
    )
    state = PlateauState()
    losses = [3, 2, 2, 1.99999, 2.5, 2, 1, 1, 1, 1, 1, 0.5, 0.6, 0.7, 0.8, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    found = []
    for loss in losses:
        scheduler.step(loss)
        state.observe(schedule, loss)
        found.append(lr_at(schedule, 0.4, CALENDAR.moment(0), state))
        assert found[-1] == pytest.approx(optimizer.param_groups[0]["lr"])
    assert len(set(found)) >= 3


def test_a_calendar_of_epochs_of_different_lengths() -> None:
    clock = StepClock((2, 2, 5))
    assert clock.last_step == 9
    assert [clock.epoch(step) for step in range(10)] == [0, 0, 1, 1, 2, 2, 2, 2, 2, 3]
    assert [clock.epochs_begun(step) for step in range(10)] == [0, 1, 1, 2, 2, 3, 3, 3, 3, 3]
    assert clock.moment(3) == TrainTime(1.5, 0.5, 3)
    assert clock.moment(6).epoch == pytest.approx(2.4)
    assert clock.moment(9).epoch == pytest.approx(3.0)


@pytest.mark.parametrize("steps", [3, 7, 13, 49, 93, 750])
def test_a_milestone_falls_at_the_first_step_of_its_epoch_whatever_the_epochs_length(steps: int) -> None:
    clock = StepClock((steps,) * 90)
    for schedule in (MultiStep(milestones=(29, 61), gamma=0.1), Step(every_epochs=29)):
        before, at = (lr_at(schedule, 1.0, clock.moment(29 * steps - back)) for back in (1, 0))
        assert (before, at) == (1.0, pytest.approx(0.1))


def test_a_schedule_of_a_phase_counts_from_the_phases_start() -> None:
    moment = CALENDAR.moment(9 * SPE).since(6)
    assert lr_at(Cosine(), 0.4, moment) == pytest.approx(0.2)
