"""Checkpoints: what is damaged or of another program is named, whatever is wrong with it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common import files
from pipeline.common.errors import CheckpointError
from pipeline.runs import checkpoints
from pipeline.runs.directory import RunDirectory
from tests.helpers import tiny


@pytest.fixture(scope="module")
def last(trained: Path) -> Path:
    return RunDirectory(trained / "runs/tiny").checkpoint("last")


def changed(path: Path, to: Path, key: str, value: Any) -> Path:
    """A copy of a checkpoint with another value of a dotted key; `...` takes the key out."""
    content: Any = torch.load(path, weights_only=True)
    *outer, name = key.split(".")
    tree = content
    for part in outer:
        tree = tree[part] if isinstance(tree, dict) else tree[int(part)]
    if value is ...:
        del tree[name]
    else:
        tree[name] = value
    checkpoints.save(to, content)
    return to


@pytest.mark.parametrize("kept_bytes", [0, 1, 100, 30_000, 500_000, -1, -4000])
def test_a_truncated_checkpoint_is_named(last: Path, tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(last.read_bytes()[:kept_bytes])
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged .*, or not a checkpoint; take another one"):
        checkpoints.read(path)


def test_a_single_changed_bit_of_a_weight_is_seen(last: Path, tmp_path: Path) -> None:
    """torch itself would give the other weights without a word."""
    path = tmp_path / "last.pt"
    content = bytearray(last.read_bytes())
    weight = torch.load(last, weights_only=True)["model"]["backbone.conv1.1.running_var"]
    content[content.index(weight.numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged \(cut short\?\), or not a checkpoint"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, ...)
            for key in ("model", "ema", "optimizer", "scaler", "epoch", "step", "config", "classes")
        ),
        *((key, ...) for key in ("samples", "precision", "batch_size", "weights", "best")),
        *(("step", value) for value in (-1, 1.5, "4", None, True, torch.tensor(4))),
        ("epoch", -1),
        ("batch_size", 0),
        ("precision", "fp8"),
        ("classes", ["Jay", 3]),
        ("classes", "Jay"),
        ("model", None),
        ("model", {"conv1.weight": [1.0]}),
        ("model", {3: torch.zeros(3)}),
        ("ema", []),
        ("optimizer", {"state": {}}),
        ("optimizer", {"state": {"a": {}}, "param_groups": []}),
        ("config", {}),
        ("config", {"model": "resnet50"}),
        ("config", {"model": {"name": None}}),
    ],
)
def test_a_checkpoint_with_a_part_missing_or_of_another_type_is_named_with_the_part(
    last: Path, tmp_path: Path, key: str, value: Any
) -> None:
    path = changed(last, tmp_path / "last.pt", key, value)
    with pytest.raises(
        CheckpointError, match=rf"last\.pt: damaged \({key}.*: .*\); take another one of this run"
    ):
        checkpoints.read(path)


@pytest.mark.parametrize("value", [..., 1, "2", None, torch.zeros(3)])
def test_a_file_of_another_format_is_no_checkpoint_of_this_program(
    last: Path, tmp_path: Path, value: Any
) -> None:
    with pytest.raises(CheckpointError, match="not a training checkpoint of this program"):
        checkpoints.read(changed(last, tmp_path / "last.pt", "format", value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("phase", ...),
        ("phase", None),
        ("phase.index", "a"),
        ("phase.index", 7),
        ("phase.index", -1),
        ("phase.swats", []),
        ("phase.plateau.best", None),
        ("totals", None),
        ("totals.seen", "many"),
        ("best", 3),
        ("best.epoch", ...),
        ("best.top1", "high"),
        ("optimizer.param_groups", []),
        ("optimizer.param_groups.0.params", 3),
        ("optimizer.state", {999: {}}),
        ("optimizer.state", {0: {"momentum_buffer": "none"}}),
        ("config.train", 3),
        ("config.optim.phases", 3),
        ("weights", {}),
    ],
)
def test_a_resume_from_a_damaged_checkpoint_is_one_sentence(
    last: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    path = changed(last, tmp_path / "damaged.pt", key, value)
    code = tiny.do("train", tmp_path, "train.epochs=4", f"train.resume={path}", "data.workers=0")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) in ((2, 1), (0, 0))
    if code == 2:
        assert str(path) in errors[0]
    else:
        assert key in ("weights", "optimizer.state")  # what is shown, and what a fresh optimizer has not


def test_weights_of_another_type_are_refused_and_not_converted(
    last: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(last, weights_only=True)
    content["model"]["backbone.conv1.0.weight"] = content["model"]["backbone.conv1.0.weight"].to(torch.int8)
    checkpoints.save(tmp_path / "damaged.pt", content)
    for verb, key in (("train", "train.resume"), ("eval", "eval.checkpoint")):
        assert tiny.do(verb, tmp_path, f"{key}={tmp_path / 'damaged.pt'}") == 2
        assert "damaged.pt: damaged: numbers are of a different type" in capsys.readouterr().err


def test_a_finished_run_without_a_best_is_damaged(
    last: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(last, tmp_path / "runs/tiny/checkpoints/last.pt", "best", None)
    assert tiny.do("train", tmp_path) == 2
    assert f"{path}: damaged (best is missing); take another one of this run" in capsys.readouterr().err


def test_equal_content_is_equal_bytes_whatever_the_unfinished_file_was_called(tmp_path: Path) -> None:
    paths = tmp_path / "best.pt", tmp_path / "last.pt"
    for path in paths:
        checkpoints.save(path, {"step": 3, "model": {"a": torch.arange(5.0)}})
    assert len({files.digest_of_file(path) for path in paths}) == 1


def test_a_checkpoint_for_which_there_is_no_room_is_named_and_the_one_before_stays(small_disk: Path) -> None:
    path = small_disk / "last.pt"
    checkpoints.save(path, {"step": 3})
    with pytest.raises(OSError, match="No space left") as raised:
        checkpoints.save(path, {"model": {f"w{number}": torch.zeros(100_000) for number in range(5)}})
    assert raised.value.filename == str(path)
    assert torch.load(path, weights_only=True) == {"step": 3}
    assert [file.name for file in small_disk.iterdir()] == ["last.pt"]
