"""Learning rates in closed form, and step by step against those of torch."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from pipeline.config import Constant, Cosine, ScheduleConfig, Step
from pipeline.schedule import lr_at

SPE, EPOCHS = 7, 12
STEPS = SPE * EPOCHS


def rates(schedule: ScheduleConfig, lr: float = 0.4) -> list[float]:
    return [lr_at(schedule, lr, step, SPE, EPOCHS) for step in range(STEPS)]


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
    found = rates(Step(milestones=(3, 8), gamma=0.1))
    assert found == pytest.approx([0.4] * 21 + [0.04] * 35 + [0.004] * 28)


def test_each_step_can_have_a_factor_of_its_own() -> None:
    found = rates(Step(milestones=(3, 8, 9), gamma=(0.5, 0.5, 0.2)))
    assert found == pytest.approx([0.4] * 21 + [0.2] * 35 + [0.1] * 7 + [0.02] * 21)


def test_steps_are_those_of_torch() -> None:
    expected = rates_of_torch(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [21, 56], 0.3))
    assert rates(Step(milestones=(3, 8), gamma=0.3)) == pytest.approx(expected)


@pytest.mark.parametrize("final_factor", [0.0, 0.1])
def test_cosine_at_its_quarters(final_factor: float) -> None:
    found = rates(Cosine(final_factor=final_factor))
    span = 1 - final_factor
    assert found[0] == pytest.approx(0.4)
    assert found[21] == pytest.approx(0.4 * (final_factor + span * (2 + math.sqrt(2)) / 4))
    assert found[42] == pytest.approx(0.4 * (final_factor + span / 2))
    assert found[63] == pytest.approx(0.4 * (final_factor + span * (2 - math.sqrt(2)) / 4))
    assert lr_at(Cosine(final_factor=final_factor), 0.4, STEPS, SPE, EPOCHS) == pytest.approx(
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
    assert lr_at(Cosine(final_factor=0.1), 0.4, STEPS + 5, SPE, EPOCHS) == pytest.approx(0.04)


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), Step(milestones=(3,))])
def test_a_warm_up_as_long_as_the_training_only_rises(schedule: ScheduleConfig) -> None:
    found = rates(schedule.model_copy(update={"warmup_epochs": 12.0}))
    assert found == pytest.approx([0.4 * (step + 1) / STEPS for step in range(STEPS)])
