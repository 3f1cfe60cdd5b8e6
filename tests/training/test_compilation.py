"""`train.compile`: as many graphs as there are sizes of a pass, none for evaluation, and honest speeds."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.exc import InductorError

from pipeline.data.loader import Batch
from pipeline.training import preflight
from pipeline.training.compilation import Compilation, compile_errors, compiled
from tests.helpers import tiny


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the images in each graph that is compiled; they are run as they are."""
    found: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        shapes = {tuple(one.shape) for one in inputs if isinstance(one, torch.Tensor) and one.ndim == 4}
        assert all(isinstance(size, int) for shape in shapes for size in shape), "a size that is open"
        found.extend((n, width) for n, channels, _, width in shapes if channels == 3 and width >= 16)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(preflight, "check_compiler", lambda *_: None)
    torch.compiler.reset()
    return found


def test_an_epoch_of_two_batch_sizes_takes_two_graphs_and_its_validation_none(
    birds: Path, tmp_path: Path, graphs: list[tuple[int, ...]]
) -> None:
    """36 images in 5 steps: one batch of 8 and four of 7; the 6 of validation are looked at 4 and 2 at a time."""
    more = ["train.compile=true", "train.epochs=2", "eval.batch_size=4", "train.eval_every_steps=2"]
    mixed = ["train.ema_decay=0.9", "train.mix=[{name: snapmix, probability: 0.5}]", "model.dropout=0.1"]
    assert tiny.do("train", tmp_path, *more, *mixed) == 0
    assert sorted(graphs) == [(7, 32), (8, 32)]


@pytest.mark.slow  # twelve compilations
def test_many_sizes_with_frozen_stages_and_without_have_a_graph_each(
    birds: Path, tmp_path: Path, graphs: list[tuple[int, ...]]
) -> None:
    """More than the 8 after which torch would go on without a graph."""
    sides = [16, 20, 24, 28]
    stages = ", ".join(
        f"{{until_epoch: {epoch}, image_px: {side}}}" for epoch, side in enumerate(sides, start=1)
    )
    more = ["train.compile=true", "train.epochs=7", "optim.frozen_stages=1", "optim.unfreeze_epoch=6"]
    assert tiny.do("train", tmp_path, *more, f"data.progressive=[{stages}]") == 0
    once = [(images, side) for images in (7, 8) for side in [*sides, 32]]
    assert sorted(graphs) == sorted([*once, (7, 32), (8, 32)])  # once more when the first stage thaws


def test_ragged_micro_batches_take_no_more_graphs_than_sizes(
    birds: Path, tmp_path: Path, graphs: list[tuple[int, ...]]
) -> None:
    more = ["train.compile=true", "train.epochs=1", "optim.batch_size=4", "optim.effective_batch_size=8"]
    assert tiny.do("train", tmp_path, *more) == 0
    assert sorted(graphs) == [(3, 32), (4, 32)]


def test_a_compiled_run_learns_what_one_that_is_not_does_and_times_no_step_that_compiles(
    birds: Path, tmp_path: Path, graphs: list[tuple[int, ...]]
) -> None:
    more = ["train.max_steps=6", "train.epochs=3"]
    assert tiny.do("train", tmp_path, *more, "run.name=usual") == 0
    assert tiny.do("train", tmp_path, *more, "run.name=compiled", "train.compile=true") == 0
    usual, found = (tiny.records(tmp_path / "runs" / name / "log.jsonl") for name in ("usual", "compiled"))
    for one, other in zip(usual, found, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)


def test_only_the_first_step_of_each_size_compiles(tmp_path: Path) -> None:
    def batch(side: int) -> Batch:
        return Batch(torch.zeros(3, 3, side, side), torch.zeros(3), torch.zeros(3))

    compilation = Compilation(tiny.config(tmp_path, "train.compile=true"))
    sizes = [(32, 8), (32, 7), (32, 8), (24, 8), (32, 7)]
    assert [compilation.is_due(batch(side), images) for side, images in sizes] == [
        *(True, True, False, True, False)
    ]
    compilation.of(nn.Identity())  # a stage has thawed
    assert compilation.is_due(batch(32), 8)
    off = Compilation(tiny.config(tmp_path))
    assert not off.is_due(batch(32), 8)
    model = nn.Identity()
    assert off.of(model) is model


@pytest.mark.parametrize(("setting", "mode"), [("false", None), ("true", "reduce-overhead")])
def test_cuda_graphs_are_a_mode_of_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, mode: str | None
) -> None:
    """Torch's name for them, as their kernels run on a GPU alone."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.append(options) or model)
    compiled(nn.Identity(), tiny.config(tmp_path, "train.compile=true", f"train.cuda_graphs={setting}"))
    assert asked == [{"dynamic": False, "mode": mode}]


def test_cuda_graphs_are_refused_on_the_cpu(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, "train.compile=true", "train.cuda_graphs=true") == 2
    assert "train.cuda_graphs needs a GPU, and this run is on the CPU; set" in capsys.readouterr().err


def test_the_limit_of_graphs_grows_with_the_sizes(tmp_path: Path) -> None:
    stages = ", ".join(f"{{until_epoch: {epoch}, image_px: {10 + epoch}}}" for epoch in range(6, 22))
    config = tiny.config(tmp_path, "train.epochs=30", f"data.progressive=[{stages}]")
    before = torch._dynamo.config.recompile_limit
    try:
        compiled(nn.Identity(), config)
        assert torch._dynamo.config.recompile_limit == 17 * 8
        compiled(nn.Identity(), tiny.config(tmp_path))
        assert torch._dynamo.config.recompile_limit == 64
    finally:
        torch._dynamo.config.recompile_limit = before


@pytest.mark.parametrize("way", ["activation_crop", "activation_swap"])
def test_data_aware_crops_take_no_more_graphs(
    birds: Path, tmp_path: Path, graphs: list[tuple[int, ...]], way: str
) -> None:
    more = ["train.compile=true", "train.epochs=2", f"train.mix=[{{name: {way}, probability: 0.5}}]"]
    assert tiny.do("train", tmp_path, *more) == 0
    assert sorted(graphs) == [(7, 32), (8, 32)]


def test_memory_that_does_not_suffice_while_torch_compiles_is_no_missing_compiler() -> None:
    with pytest.raises(InductorError), compile_errors():
        raise InductorError(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), None)


@pytest.mark.parametrize("setting", [True, False])
def test_the_compiler_chooses_by_rule_where_a_run_is_deterministic(tmp_path: Path, setting: bool) -> None:
    before = torch._inductor.config.deterministic
    try:
        compiled(nn.Identity(), tiny.config(tmp_path, "train.compile=true", f"train.deterministic={setting}"))
        assert torch._inductor.config.deterministic == setting
    finally:
        torch._inductor.config.deterministic = before
