"""The moving average of the weights is timm's to the bit, whatever becomes of the model between its updates."""

import copy
from typing import Any

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from pipeline.training.weight_average import WeightAverage


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5).double())


def learn(model: nn.Module, step: int) -> None:
    """Change every tensor, as a step of training does, in place."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    assert all(name == again and torch.equal(a, b) for (name, a), (again, b) in pairs)


@pytest.mark.parametrize("options", [{}, {"use_warmup": True}, {"foreach": False}])
def test_it_is_timms_to_the_bit(options: dict[str, Any]) -> None:
    model = network()
    own, timms = (kind(model, 0.9, **options) for kind in (WeightAverage, ModelEmaV3))
    for step in range(1, 6):
        learn(model, step)
        for average in (own, timms):
            average.update(model, step)
        assert_same(own.module, timms.module)
        moved = not torch.equal(own.module[0].weight, model[0].weight)
        assert moved == (step > 1)  # it begins at the first step's weights


def test_it_follows_a_model_that_is_frozen_loaded_and_moved() -> None:
    model = network()
    own, timms = WeightAverage(model, 0.9), ModelEmaV3(model, 0.9)
    saved = copy.deepcopy(model.state_dict())
    for step in range(1, 9):
        learn(model, step)
        if step == 3:
            model[0].requires_grad_(False)
        if step == 5:
            model.load_state_dict(saved)
            own.module.load_state_dict(saved)
            timms.module.load_state_dict(saved)
        for average in (own, timms):
            average.update(model, step)
        assert_same(own.module, timms.module)


def test_it_follows_another_model_and_copies_of_it_follow_theirs() -> None:
    model = network()
    own = WeightAverage(model, 0.5)
    own.update(model, 1)
    own.update(model, 2)
    other, average = copy.deepcopy(model), copy.deepcopy(own)
    learn(other, 3)
    expected = ModelEmaV3(model, 0.5)
    expected.update(other, 3)
    average.update(other, 3)
    assert_same(average.module, expected.module)
    assert_same(own.module, model)
    own.update(other, 3)
    assert_same(own.module, expected.module)


def test_it_looks_the_tensors_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = network(), []
    own = WeightAverage(model, 0.9)
    state_dict = nn.Module.state_dict

    def counted(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        asked.append(module)
        return state_dict(module, *arguments, **options)

    monkeypatch.setattr(nn.Module, "state_dict", counted)
    own.update(model, 1)
    first = len(asked)
    own.update(model, 2)
    assert first > 0
    assert len(asked) == first
