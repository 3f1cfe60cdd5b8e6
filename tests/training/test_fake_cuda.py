"""What a training does on a GPU, without one: torch's fake tensors are on `cuda`, have no values, and run no kernel.

Tensors on two devices raise as on a GPU, and so does whatever reads a value, for which a GPU would be waited for. Left
out are backward passes (autograd's engine asks CUDA itself for its streams; gradients are given) and what kernels
check; of the fused optimizers' kernels, it is checked here.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.common import hardware
from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig
from pipeline.config.schema import Config
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.inference import predict
from pipeline.models.build import build_model
from pipeline.training import auto_batch_size, phases, preflight
from pipeline.training.checkpointing import copy_to_host
from pipeline.training.mixing import mix
from pipeline.training.optimizer import build_optimizer, parameter_groups
from pipeline.training.state import TrainState, checkpoint_content, restore
from pipeline.training.step import StepSettings, train_step
from pipeline.training.weight_average import WeightAverage
from tests.helpers import tiny

CUDA = torch.device("cuda", 0)
GPU = Ranks.single(CUDA)
STAGED_BYTES = (
    64 << 10
)  # of pageable memory, which CUDA takes at once; for more the program may wait for the stream
LAST, CLASSES, SIDE_PX = torch.channels_last, 4, 64
WAYS = ["mixup", "cutmix", "snapmix", "activation_crop", "activation_mask", "activation_swap"]
HEADS: dict[str, Any] = {"mid_level_head": True, "dropout": 0.5, "stochastic_depth": 0.2}


class FakeGpu:
    """Fake tensors on a GPU that is not there."""

    def __init__(self) -> None:
        self.learning: list[nn.Parameter] = []
        self.fused_steps = 0

    def place(self, model: nn.Module) -> None:
        """Give a model tensors on the GPU, with the strides that its own have."""
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        twin = torch.empty_strided(
                            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA
                        )
                        is_weight = isinstance(tensor, nn.Parameter)
                        tensors[name] = nn.Parameter(twin, tensor.requires_grad) if is_weight else twin  # type: ignore[assignment]

    def state(self, optim: OptimConfig | None = None, *, fp16: bool = False, **options: Any) -> TrainState:
        """A training with EMA, as `TrainingSetup.build_state` makes it."""
        optim = optim or OptimConfig()
        with unset_fake_temporarily():
            model = build_model(ModelConfig(name="test_resnet", pretrained=False, **options), CLASSES)[0]
            average = WeightAverage(model.train(), 0.9, use_warmup=True)
            for network in (model, average.module):
                network.to(memory_format=LAST)
        self.place(model)
        self.place(average.module)
        self.learning = list(model.parameters())
        optimizer = self.optimizer(model, optim, phases.first(optim))
        scaler = torch.amp.GradScaler("cuda", enabled=fp16)
        return TrainState(model, optimizer, scaler, average, phases.first(optim))

    def optimizer(self, model: Any, optim: OptimConfig, state: phases.PhaseState) -> Any:
        phase = optim.resolved_phases[state.index]
        groups = parameter_groups(model, optim, weight_decay=phase.weight_decay)
        return build_optimizer(groups, phase, lr=state.lr)

    def backward(self, loss: Tensor, *_: Any, **__: Any) -> None:
        """In the place of `Tensor.backward`."""
        assert loss.requires_grad
        assert loss.device == CUDA
        for weight in self.learning:
            if weight.requires_grad:
                given = torch.empty_like(weight)
                weight.grad = given if weight.grad is None else weight.grad.add_(given)

    def fused(self, weights: list[Tensor], *lists: Any, **named: Any) -> None:
        """In the place of a kernel: what `at::native::check_fast_path_restrictions` refuses is refused."""
        self.fused_steps += 1
        leaves = pytree.tree_leaves((weights, lists, named))
        assert {leaf.device for leaf in leaves if isinstance(leaf, Tensor)} == {CUDA}
        for tensors in lists:
            for weight, tensor in zip(weights, tensors, strict=False):
                if tensor.ndim == weight.ndim > 0:
                    long = [axis for axis, size in enumerate(weight.shape) if size > 1]
                    assert tensor.shape == weight.shape and tensor.dtype == weight.dtype
                    assert [tensor.stride(axis) for axis in long] == [weight.stride(axis) for axis in long]


def pinned(tensor: Tensor, *_: Any) -> Tensor:
    """In the place of `Tensor.pin_memory`."""
    tensor.is_in_pinned_memory = True  # type: ignore[attr-defined]
    return tensor


class Stream:
    def wait_stream(self, stream: Any) -> None: ...
    def synchronize(self) -> None: ...


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    fake = FakeGpu()
    replaced: dict[str, Any] = {
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.cuda.get_device_capability": lambda *_: (9, 0),
        "torch.cuda.current_stream": lambda *_: Stream(),
        "torch.cuda.stream": lambda *_: nullcontext(),
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.reset_peak_memory_stats": lambda *_: None,
        "torch.random.fork_rng": lambda **_: nullcontext(),
        "torch.Tensor.record_stream": lambda *_: None,
        "torch.Tensor.pin_memory": pinned,
        "torch.Tensor.backward": lambda loss, *_, **__: fake.backward(loss),
        "pipeline.data.loader._copying_stream": lambda _: Stream(),
    }
    replaced |= {f"torch._fused_{name}_": fake.fused for name in ("sgd", "adam", "adamw")}
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        for name, function in replaced.items():
            stack.enter_context(mock.patch(name, function))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield fake


def batch_of(images: int, device: torch.device | str = "cpu") -> Batch:
    """As the loader gives it: channels last in memory."""
    row = torch.arange(images, device=device)
    pixels = torch.zeros(images, SIDE_PX, SIDE_PX, 3, dtype=torch.uint8, device=device)
    return Batch(pixels.permute(0, 3, 1, 2), row % CLASSES, row)


def take_steps(state: TrainState, *ways: str, **changes: Any) -> Tensor:
    usual: dict[str, Any] = {"seed": 0, "label_smoothing": 0.1, "clip_norm": 1.0, "micro_batch_size": 64}
    usual |= {
        "precision": "bf16",
        "ranks": GPU,
        "mix": tuple(MixConfig.model_validate({"name": way, "probability": 1 / len(ways)}) for way in ways),
    }
    settings = StepSettings(**usual | changes)
    for _ in range(2):  # the first has no momentum
        sums = train_step(state, state.model, batch_of(7), 7, phases.Rates(0.1, 0.9), settings)
    return sums


@pytest.mark.parametrize("way", ["none", *WAYS])
def test_a_step_computes_on_the_gpu_alone_and_waits_for_nothing(gpu: FakeGpu, way: str) -> None:
    state = gpu.state(**HEADS)
    sums = take_steps(state, *([] if way == "none" else [way]))
    assert (sums.device, sums.shape, gpu.fused_steps > 0) == (CUDA, (4,), True)
    assert {tensor.device for tensor in state.eval_model.state_dict().values()} == {CUDA}


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimizers_take_what_they_are_given(gpu: FakeGpu, name: str, precision: Any) -> None:
    state = gpu.state(OptimConfig(name=name), fp16=precision == "fp16")
    take_steps(state, precision=precision, micro_batch_size=3)
    assert gpu.fused_steps >= 2


def test_of_fp16_an_optimizer_without_such_a_kernel_waits(gpu: FakeGpu) -> None:
    """GradScaler reads there whether the gradients are finite (docs/training.md)."""
    take_steps(gpu.state(OptimConfig(name="rmsprop")))
    with pytest.raises(DataDependentOutputException):
        take_steps(gpu.state(OptimConfig(name="rmsprop"), fp16=True), precision="fp16")


@pytest.mark.parametrize("way", WAYS)
def test_mixed_images_lie_in_memory_as_those_of_the_loader_do(gpu: FakeGpu, way: str) -> None:
    """Otherwise torch.compile makes a graph more for each size, within steps that are timed."""
    batch = batch_of(7).to(CUDA)
    mixed = mix(batch, (MixConfig(name=way),), np.random.default_rng(1), gpu.state().model)  # type: ignore[arg-type]
    assert mixed.image.device == CUDA
    assert mixed.image.stride() == batch.image.stride()


class StagedAtOnce(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where much is copied from pageable memory: CUDA may then wait for the stream, `non_blocking` or not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and found.is_cuda:
            is_pinned = getattr(args[0], "is_in_pinned_memory", False)
            assert is_pinned or args[0].nbytes <= STAGED_BYTES, f"{args[0].nbytes} bytes of pageable memory"
        return found


@pytest.mark.parametrize("way", WAYS)
def test_what_is_drawn_for_a_large_batch_is_copied_without_waiting(gpu: FakeGpu, way: str) -> None:
    model, batch = gpu.state().model, batch_of(512, CUDA)
    with StagedAtOnce():  # type: ignore[no-untyped-call]
        mix(batch, (MixConfig(name=way),), np.random.default_rng(1), model)  # type: ignore[arg-type]


@pytest.mark.parametrize("features", [False, True])
def test_predictions_come_to_the_host(gpu: FakeGpu, monkeypatch: Any, features: bool) -> None:
    parts: list[Any] = []
    monkeypatch.setattr(predict, "_gather", lambda given, *_: parts.extend(given))
    model = gpu.state(**HEADS).eval_model
    predict.predict_batches(model, [batch_of(5)], np.arange(5), "bf16", GPU, features)
    (part,) = parts
    assert [tensor.device.type for tensor in part] == ["cpu"] * 3
    assert [len(tensor) for tensor in part] == [5] * 3


def config(tmp: Path, *more: str) -> Config:
    with unset_fake_temporarily():
        return tiny.config(tmp, f"data.image_px={SIDE_PX}", "data.resize_px=64", *more)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_passes_before_a_training_run_there(
    birds: Path, gpu: FakeGpu, tmp_path: Path, precision: Any
) -> None:
    phase_of_two = "optim.phases=[{name: adam, until: 1, lr: 0.01}, {name: sgd, lr: 0.1}]"
    asked = config(tmp_path, phase_of_two, "train.mix=[{name: snapmix}]", "model.mid_level_head=true")
    state = gpu.state(asked.optim, **HEADS)
    preflight.check_passes(
        asked,
        GPU,
        state,
        precision,
        {0: 2},
        CLASSES,
        lambda *args: gpu.optimizer(args[0], asked.optim, args[1]),
    )
    assert gpu.fused_steps > 0
    assert {parameter.grad for parameter in gpu.learning} == {None}


def test_a_batch_size_is_found_there(birds: Path, gpu: FakeGpu, tmp_path: Path, monkeypatch: Any) -> None:
    peaks = iter(range(10**9, 10**11, 10**8))
    monkeypatch.setattr(hardware, "peak_bytes", lambda _: next(peaks))
    monkeypatch.setattr(hardware, "free_bytes", lambda _: 10**10)
    asked = config(tmp_path, "optim.batch_size=auto", "optim.effective_batch_size=64", "optim.clip_norm=1")
    assert auto_batch_size.auto_batch_size(asked, gpu.state().model, "bf16", GPU) == 64


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_checkpoint_goes_to_the_host_and_back(gpu: FakeGpu, monkeypatch: Any, name: str) -> None:
    optim, empty_like = OptimConfig(name=name), torch.empty_like
    state = gpu.state(optim)
    take_steps(state)
    unpinned = lambda tensor, **options: empty_like(tensor, **{**options, "pin_memory": False})  # noqa: E731
    monkeypatch.setattr(torch, "empty_like", unpinned)
    content = copy_to_host(checkpoint_content(state, 1, {"config": {}}, GPU), CUDA)
    assert {leaf.device.type for leaf in pytree.tree_leaves(content) if isinstance(leaf, Tensor)} == {"cpu"}
    other = gpu.state(optim)
    monkeypatch.setattr("pipeline.training.state.not_finite", lambda _: [])  # reads values
    restore(other, content, Path("last.pt"))
    take_steps(other)
    moments = pytree.tree_leaves(dict(other.optimizer.state))
    assert {leaf.device for leaf in moments if isinstance(leaf, Tensor)} == {CUDA}


def test_what_would_fail_or_wait_is_found(gpu: FakeGpu) -> None:
    there = torch.ones(3, device=CUDA)
    with pytest.raises(RuntimeError, match="same device|two different devices"):
        there + torch.ones(3)
    for read in (Tensor.item, bool, Tensor.nonzero):
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            read(there.sum())
    with torch.autocast("cuda", torch.bfloat16):
        assert (there[None] @ there[:, None]).dtype == torch.bfloat16
