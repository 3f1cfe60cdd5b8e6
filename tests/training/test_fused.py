"""Fused optimizer steps: the same numbers, from any checkpoint, and only where they fit.

The kernels are there on the CPU too, and are taken here as on a GPU.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig, SwatsRule
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.models.build import build_model
from pipeline.training import fused, phases
from pipeline.training.optimizer import Optimizer, build_optimizer, carry_momentum, parameter_groups
from pipeline.training.state import TrainState, checkpoint_content, restore
from pipeline.training.step import StepSettings, train_step

ALONE = Ranks.single(torch.device("cpu"))
NAMES = ["sgd", "adam", "adamw"]


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))


def state_of(config: OptimConfig, *, scaled: bool = False) -> TrainState:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name="test_resnet", pretrained=False), 4)[0].train()
    model.double().to(memory_format=torch.channels_last)  # float32 would add what rounding grows to
    groups = parameter_groups(model, config, weight_decay=0.01)
    optimizer = build_optimizer(groups, config.resolved_phases[0], lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    return TrainState(model, optimizer, scaler, None, phases.first(config))


def take_steps(state: TrainState, count: int, precision: Any = "fp32") -> None:
    settings = StepSettings(0, 0.1, (), 1.0, 64, precision, ALONE)
    for _ in range(count):
        random = np.random.default_rng(state.step)
        pictures = torch.from_numpy(random.integers(0, 256, (6, 3, 32, 32), np.uint8))
        batch = Batch(pictures, torch.arange(6) % 4, torch.arange(6))
        train_step(state, state.model, batch, 6, phases.Rates(1e-3, 0.9), settings)


def is_fused(optimizer: Optimizer) -> set[bool]:
    return {bool(group.get("fused")) for group in optimizer.param_groups}


def assert_close(one: TrainState, other: TrainState) -> None:
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def both(
    config: OptimConfig, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[TrainState, TrainState]:
    """The same state with torch's default on this device, and with the fused optimizer."""
    usual = state_of(config, **options)
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    return usual, state_of(config, **options)


@pytest.mark.parametrize("name", NAMES)
def test_on_the_cpu_torchs_default_is_taken(name: str) -> None:
    assert is_fused(state_of(OptimConfig(name=name)).optimizer) == {False}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        *(({"name": name}, True) for name in NAMES),
        ({"name": "adamw", "options": {"eps": 1e-6}}, True),
        ({"name": "rmsprop"}, False),
        ({"name": "lion"}, False),
        ({"name": "adam", "options": {"foreach": True}}, False),
        ({"name": "adam", "options": {"fused": False}}, False),
        ({"name": "sgd", "options": {"dampening": 0.1}, "nesterov": False}, False),
        ({"phases": ({"name": "adam", "until": {"name": "swats"}}, {"name": "sgd"})}, False),
    ],
)
def test_it_is_taken_where_it_computes_what_the_others_do(
    as_on_gpu: None, settings: dict[str, Any], expected: bool
) -> None:
    optimizer = state_of(OptimConfig(**settings)).optimizer
    assert is_fused(optimizer) == {expected}


@pytest.mark.parametrize("name", NAMES)
def test_its_steps_are_those_of_the_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    usual, in_one = both(OptimConfig(name=name), monkeypatch)
    assert is_fused(in_one.optimizer) == {True}
    before = [parameter.clone() for parameter in in_one.model.parameters()]
    for state in (usual, in_one):
        take_steps(state, 4)
    assert_close(usual, in_one)
    moved = [not torch.equal(a, b) for a, b in zip(before, in_one.model.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_may_thaw(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    states = both(OptimConfig(name=name), monkeypatch)
    for state in states:
        frozen: Any = state.model.backbone.layer1
        frozen.requires_grad_(False)
        take_steps(state, 2)
        frozen.requires_grad_(True)
        take_steps(state, 2)
    assert_close(*states)


@pytest.mark.parametrize("name", NAMES)
def test_a_first_step_that_fp16_skips_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    states = both(OptimConfig(name=name), monkeypatch, scaled=True)
    garbage = torch.empty_like  # what is not initialised is whatever was in memory, here not a number

    def empty_like(*arguments: Any, **options: Any) -> torch.Tensor:
        made = garbage(*arguments, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty_like", empty_like)
    for state in states:
        before = [parameter.clone() for parameter in state.model.parameters()]
        parameter = next(state.model.parameters())
        spoiled = parameter.register_hook(lambda gradient: gradient * torch.inf)
        take_steps(state, 1, "fp16")
        spoiled.remove()
        assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
        assert state.scaler.get_scale() == 2.0**15
        take_steps(state, 2, "fp16")
    assert all(parameter.isfinite().all() for parameter in states[1].model.parameters())
    assert_close(*states)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("to_fused", [True, False])
def test_a_checkpoint_goes_on_with_and_without(
    monkeypatch: pytest.MonkeyPatch, name: str, to_fused: bool
) -> None:
    """As from a CPU to a GPU and back: what is saved holds the state, and not how a step is computed."""
    usual, in_one = both(OptimConfig(name=name), monkeypatch)
    if not to_fused:
        usual, in_one = in_one, usual
    take_steps(usual, 2)
    content = copy.deepcopy(checkpoint_content(usual, 0, {}, ALONE))  # as a file does
    restore(in_one, content, Path("last.pt"))
    assert is_fused(in_one.optimizer) == {to_fused}
    for parameter, moments in in_one.optimizer.state.items():
        for moment in moments.values():
            assert moment.shape in (parameter.shape, ())
            assert moment.dtype == (torch.float32 if moment.ndim == 0 else parameter.dtype)
    for state in (usual, in_one):
        take_steps(state, 2)
    assert_close(usual, in_one)


def test_moments_get_the_strides_of_their_parameters() -> None:
    """The fused kernels refuse others, as a checkpoint of another memory format has them."""
    state, other = state_of(OptimConfig(name="adamw")), state_of(OptimConfig(name="adamw"))
    take_steps(state, 1)
    content = checkpoint_content(state, 0, {}, ALONE)
    saved = content["optimizer"]["state"]
    for moments in saved.values():
        moments.update({key: value.contiguous() for key, value in moments.items()})
    assert any(
        value.ndim == 4 and value.shape[1:3] > (1, 1) for of in saved.values() for value in of.values()
    )
    restore(other, content, Path("last.pt"))
    for parameter, moments in other.optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            assert moments[key].stride() == parameter.stride()
            assert torch.equal(moments[key], state_moment(state, other, parameter, key))


def state_moment(state: TrainState, other: TrainState, parameter: nn.Parameter, key: str) -> torch.Tensor:
    """The moment of the parameter of the same name in the first of two states."""
    (name,) = (name for name, each in other.model.named_parameters() if each is parameter)
    return state.optimizer.state[state.model.get_parameter(name)][key]  # type: ignore[no-any-return]


def test_a_momentum_is_carried_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OptimConfig(name="adam")
    states = both(config, monkeypatch)
    for number, state in enumerate(states):
        take_steps(state, 2)
        monkeypatch.setattr(fused, "DEVICES", ("cpu",) if number else ())
        sgd = OptimConfig()
        before, groups = state.optimizer, parameter_groups(state.model, sgd, weight_decay=0.01)
        state.optimizer = build_optimizer(groups, sgd.resolved_phases[0], lr=0.01)
        assert is_fused(state.optimizer) == {bool(number)}
        assert not state.optimizer.state
        carry_momentum(before, state.optimizer, 0.9)
        take_steps(state, 2)
    assert_close(*states)


def test_swats_looks_at_no_step_that_is_skipped() -> None:
    (first, _) = OptimConfig(
        phases=({"name": "adam", "until": {"name": "swats"}}, {"name": "sgd"})
    ).resolved_phases  # type: ignore[arg-type]
    assert isinstance(first.until, SwatsRule)
    assert fused.fused_option([{"params": []}], first) == {}
