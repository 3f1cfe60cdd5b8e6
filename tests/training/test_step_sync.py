"""A training step never waits for the device, and copies from the host without waiting."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.models.build import build_model
from pipeline.training import phases, step
from pipeline.training.optimizer import build_optimizer, parameter_groups
from pipeline.training.state import TrainState
from pipeline.training.weight_average import WeightAverage

DEVICE = torch.device("meta")  # has no values: whatever reads one, or needs one for a shape, fails on it
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"clip_norm": 1.0},
    "micro-batches": {"micro_batch_size": 3},
    "label smoothing": {"label_smoothing": 0.1},
    "mixup": {"mix": (MixConfig(name="mixup"),)},
    "cutmix": {"mix": (MixConfig(name="cutmix"),)},
    "snapmix": {"mix": (MixConfig(name="snapmix", alpha=5),)},
    "activation_crop": {"mix": (MixConfig(name="activation_crop"),)},
    "activation_mask": {"mix": (MixConfig(name="activation_mask"),)},
    "activation_swap": {"mix": (MixConfig(name="activation_swap"),)},
}
MODELS: dict[str, dict[str, Any]] = {
    "usual": {},
    "two heads": {"mid_level_head": True, "dropout": 0.5, "stochastic_depth": 0.2},
    "gem": {"pool": "gem"},
}
OPTIMIZERS = {
    "sgd": OptimConfig(),
    "adamw": OptimConfig(name="adamw"),
    "rmsprop": OptimConfig(name="rmsprop"),
}


class NoWait(TorchDispatchMode):
    """Fails where an operation copies from the host and waits, as it also does with a number it has to copy."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        waits = not (copies and (kwargs.get("non_blocking") or args[2:3] == (True,)))
        given = {leaf.device.type for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        found = func(*args, **kwargs)
        made = {leaf.device.type for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)}
        assert not (waits and "cpu" in given and DEVICE.type in given | made), f"{func} waits for the device"
        return found


def state_of(optim: OptimConfig, *, ema: bool, **options: Any) -> TrainState:
    model = build_model(ModelConfig(name="test_resnet", pretrained=False, **options), 4)[0].train()
    average = WeightAverage(model, 0.9, use_warmup=True) if ema else None
    for module in [model, *([average.module] if average else [])]:
        module.to(DEVICE)
    groups = parameter_groups(model, optim, weight_decay=1e-4)
    optimizer = build_optimizer(groups, optim.resolved_phases[0], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, optimizer, scaler, average, phases.first(optim))


def take_step(state: TrainState, **changes: Any) -> Tensor:
    usual: dict[str, Any] = {"seed": 0, "label_smoothing": 0.0, "mix": (), "clip_norm": None}
    usual |= {"micro_batch_size": 64, "precision": "fp32", "ranks": Ranks.single(DEVICE)}
    # It is there already: how a batch is copied to a GPU is the loader's.
    row = torch.arange(7, device=DEVICE)
    batch = Batch(torch.zeros(7, 3, 64, 64, dtype=torch.uint8, device=DEVICE), row % 4, row)
    settings = step.StepSettings(**{**usual, **changes})
    return step.train_step(state, state.model, batch, 7, phases.Rates(0.1, 0.9), settings)


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none on this device


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_no_step_waits_for_the_device(way: str, model: str) -> None:
    state = state_of(OptimConfig(), ema=True, **MODELS[model])
    with NoWait():
        for _ in range(3):  # the first has no momentum, the third a warmed-up average
            sums = take_step(state, **WAYS[way])
    assert sums.device == DEVICE and sums.shape == (4,)
    assert state.step == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_waits_for_the_device(name: str) -> None:
    state = state_of(OPTIMIZERS[name], ema=False)
    with NoWait():
        for _ in range(2):
            take_step(state)


def test_what_waits_is_found() -> None:
    there, here = torch.ones(3, device=DEVICE), torch.ones(3)
    with NoWait():
        here.to(DEVICE, non_blocking=True)
        with pytest.raises(AssertionError, match="waits for the device"):
            here.to(DEVICE)
        with pytest.raises(AssertionError, match="waits for the device"):
            torch.where(there > 0, torch.tensor(0.0), there)
        for read in (Tensor.item, Tensor.tolist, Tensor.nonzero, Tensor.cpu):
            with pytest.raises((RuntimeError, NotImplementedError)):
                read(there[:1].sum() if read is Tensor.item else there)
