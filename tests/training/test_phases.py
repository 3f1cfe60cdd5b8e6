"""Which optimizer a step belongs to, by epoch, plateau and SWATS; and with which rates it is taken."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config.load import load_config
from pipeline.config.optim import SwatsRule
from pipeline.config.schema import Config
from pipeline.runs import checkpoints
from pipeline.training import phases, swats
from pipeline.training.phases import PhaseState
from pipeline.training.schedule import PlateauState, StepClock
from pipeline.training.swats import SwatsState

CALENDAR = StepClock((10,) * 20)


def config(*overrides: str) -> Config:
    return load_config(None, ["train.epochs=20", *overrides])


def first_step_of_sgd(made: Config, losses: list[float]) -> int:
    """Steps through the training with the validation losses of its epochs; the first step of phase 2."""
    state = phases.first(made.optim)
    for step in range(CALENDAR.last_step):
        if step and step % 10 == 0:
            phases.observe(made, state, losses[step // 10 - 1])
        if phases.is_over(made.optim.resolved_phases[state.index], state, step, CALENDAR):
            assert phases.following(made.optim, state, step).start_step == step
            return step
    return -1


def test_a_phase_ends_with_its_epoch() -> None:
    made = config("optim.phases=[{name: adam, until: 7}, {name: sgd}]")
    assert first_step_of_sgd(made, [1.0] * 20) == 70


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [
        ([3, 2, 2.5, 2.1, 2.0, 1, 1, 1, 1], 5),  # 2.0 is not lower than 2: three epochs in a row
        ([3, 2, 2.5, 2.1, 1.9, 1.95, 1.95, 1.95, 1], 8),
        (list(range(20, 0, -1)), -0.1),
    ],
)
def test_a_phase_ends_when_validation_has_not_improved_for_k_epochs(
    losses: list[float], epoch: float
) -> None:
    made = config("optim.phases=[{name: adam, until: {name: plateau, epochs: 3}}, {name: sgd}]")
    assert first_step_of_sgd(made, losses + [0.5] * 20) == pytest.approx(epoch * 10)


def test_an_improvement_smaller_than_min_delta_is_none() -> None:
    rule = "{name: plateau, epochs: 2, min_delta: 0.1}"
    made = config(f"optim.phases=[{{name: adam, until: {rule}}}, {{name: sgd}}]")
    assert first_step_of_sgd(made, [2, 1.95, 1.92, 1.0, *[1.0] * 20]) == 30


def test_the_runs_schedule_goes_on_across_phases_and_a_phases_own_counts_from_its_start() -> None:
    shared = config("optim.phases=[{name: adam, lr: 1e-3, until: 10}, {name: sgd, lr: 0.1, momentum: 0.8}]")
    before = phases.rates(shared, phases.first(shared.optim), 50, CALENDAR)
    assert before == pytest.approx((1e-3 * (1 + math.cos(math.pi / 4)) / 2, 0.9))
    second = phases.following(shared.optim, phases.first(shared.optim), 100)
    assert phases.rates(shared, second, 100, CALENDAR) == pytest.approx((0.05, 0.8))
    own = config(
        "optim.phases=[{name: adam, lr: 1e-3, until: 10, schedule: {name: cosine}}, "
        "{name: sgd, lr: 0.1, schedule: {name: cosine, warmup_epochs: 2}}]"
    )
    first = phases.first(own.optim)
    assert phases.rates(own, first, 50, CALENDAR).lr == pytest.approx(0.5e-3)  # its cosine ends at epoch 10
    second = phases.following(own.optim, first, 100)
    assert phases.rates(own, second, 100, CALENDAR).lr == pytest.approx(0.1 / 20)
    assert phases.rates(own, second, 120, CALENDAR).lr == pytest.approx(0.1)
    assert phases.rates(own, second, 160, CALENDAR).lr == pytest.approx(0.05)


def test_reduce_on_plateau_lowers_the_rate_and_goes_on_across_phases() -> None:
    made = config(
        "schedule={name: plateau, patience_epochs: 0, gamma: 0.5}",
        "optim.phases=[{name: adam, lr: 0.2, until: 5}, {name: sgd, lr: 0.4}]",
    )
    state = phases.first(made.optim)
    for loss in (1.0, 1.0, 0.5):
        phases.observe(made, state, loss)
    assert phases.rates(made, state, 30, CALENDAR).lr == pytest.approx(0.1)
    assert phases.rates(made, phases.following(made.optim, state, 50), 50, CALENDAR).lr == pytest.approx(0.2)


def test_a_state_made_plain_is_the_same_state_again() -> None:
    state = PhaseState(1, 30, 0.1, 2.0, 1, SwatsState(0.3, 4, 0.2), PlateauState(0.5, 1.0, 2, 1))
    assert checkpoints.part({"phase": dataclasses.asdict(state)}, "phase", PhaseState, Path()) == state


# SWATS


def problem(optimizer: type[torch.optim.Optimizer], lr: float, **options: Any) -> tuple[nn.Parameter, Any]:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 3))
    groups = [{"params": [weight], "lr_multiplier": 2.0}]
    made = optimizer(groups, lr=2.0 * lr, **options)  # type: ignore[call-arg]
    return weight, made


def test_a_step_of_sgd_is_seen_with_sgds_own_rate_whatever_the_multiplier() -> None:
    weight, optimizer = problem(torch.optim.SGD, 0.03)
    state = SwatsState()
    swats.attach_swats(optimizer, state, SwatsRule(tolerance=1e-7))
    for _ in range(2):
        weight.grad = torch.randn(5, 3)
        optimizer.step()
    # The step is projected without its multiplier, so its rate is (0.03 x)^2 / (0.03 x g) = 0.03.
    assert state.proposed == pytest.approx(0.03, rel=1e-5)


def test_a_step_of_adam_is_seen_as_the_paper_says() -> None:
    weight, optimizer = problem(torch.optim.Adam, 0.01)
    optimizer.param_groups[0]["lr_multiplier"] = 1.0
    state = SwatsState()
    swats.attach_swats(optimizer, state, SwatsRule(tolerance=1e-12))
    mean, rates = 0.0, []
    for count in range(1, 4):
        weight.grad = torch.randn(5, 3)
        before, gradient = weight.detach().clone(), weight.grad.clone()
        optimizer.step()
        step = (weight.detach() - before).double()
        rates.append(float(-(step * step).sum() / (step * gradient.double()).sum()))
        mean = 0.999 * mean + 0.001 * rates[-1]
        assert (state.steps, state.mean) == (count, pytest.approx(mean))
    assert state.proposed is None  # the rates differ by more than the tolerance


def test_swats_proposes_once_a_rate_agrees_with_its_mean_but_not_at_the_first_step() -> None:
    state, rule = SwatsState(), SwatsRule(tolerance=1e-3)
    state.observe(0.5, 0.9, rule)
    assert state.proposed is None
    state.observe(0.8, 0.9, rule)
    assert state.proposed is None
    corrected = (0.9 * 0.9 * 0.05 + 0.9 * 0.08 + 0.1 * 0.66) / (1 - 0.9**3)
    state.observe(0.66, 0.9, rule)
    assert abs(corrected - 0.66) < 2e-2
    assert state.proposed is None
    state.observe(corrected, 0.9, rule)
    assert state.proposed == pytest.approx(corrected, rel=1e-2)


def test_a_negative_rate_is_never_proposed() -> None:
    state, rule = SwatsState(), SwatsRule(tolerance=1.0)
    for _ in range(3):
        state.observe(-0.1, 0.9, rule)
    assert state.proposed is None


def test_sgd_takes_over_with_the_proposed_rate_times_one_minus_its_momentum() -> None:
    made = config("optim.phases=[{name: adam, lr: 1e-3, until: {name: swats}}, {name: sgd, momentum: 0.9}]")
    state = phases.first(made.optim)
    adam, sgd = made.optim.resolved_phases
    assert not phases.is_over(adam, state, 33, CALENDAR)
    state.swats.proposed = 0.2
    assert phases.is_over(adam, state, 34, CALENDAR)
    assert phases.following(made.optim, state, 34).lr == pytest.approx(0.02)
    given = config("optim.phases=[{name: adam, lr: 1e-3, until: {name: swats}}, {name: sgd, lr: 0.5}]")
    assert phases.following(given.optim, state, 34).lr == 0.5
    assert sgd.lr is None
