"""Steps of a training are taken again, and compared with its log."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.protocol import trained_again
from pipeline.protocol.trained_again import Steps
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Log
from tests.helpers import tiny


@pytest.mark.parametrize(("factor", "holds"), [(1.01, True), (1.1, False)])
def test_a_tolerance_is_for_rounding_alone(factor: float, holds: bool, confirmed: Path) -> None:
    run = RunDirectory(confirmed / "runs/tiny")
    log = Log(
        {**record, "loss": record["loss"] * factor} if record["kind"] == "step" else record
        for record in run.read_log()
    )
    claim = trained_again.check("training", tiny.config(confirmed), log, Steps(0, 10), "fp32", ["code"])
    assert (claim.result == "holds") == holds


def test_steps_from_a_checkpoint_within_the_training_are_taken_again(confirmed: Path, tmp_path: Path) -> None:
    assert tiny.do("train", tmp_path, "train.max_steps=5") == 0
    start = tiny.checkpoints(tmp_path) / "last.pt"
    log = RunDirectory(confirmed / "runs/tiny").read_log()
    steps = trained_again.steps_to_take(log, 4, 5, start)
    assert steps == Steps(5, 10, start)
    claim = trained_again.check("later", tiny.config(confirmed), log, steps, "fp32", [])
    assert claim.found == ["steps 6 to 10, taken again, have the losses of log.jsonl: the same bits"]


def test_steps_end_at_a_record_of_the_log() -> None:
    log = Log({"kind": "step", "step": step} for step in (10, 20, 30))
    take: Callable[..., Steps | None] = trained_again.steps_to_take
    assert [take(log, wanted) for wanted in (1, 10, 11, 99)] == [
        Steps(0, until) for until in (10, 10, 20, 30)
    ]
    assert take(log, 1, 30) is None


def test_an_epoch_that_max_steps_had_cut_is_compared_once_it_is_whole(birds: Path, tmp_path: Path) -> None:
    """Its log has a record of the part, which no training without that end has."""
    more = ["train.epochs=2", "train.eval_every_steps=3"]
    assert tiny.do("train", tmp_path, *more, "train.max_steps=3") == 0
    assert tiny.do("train", tmp_path, *more) == 0
    config = tiny.config(tmp_path, *more)
    log = RunDirectory(config.run_dir).read_log()
    assert [(record["step"], record["epoch"]) for record in log if record["kind"] == "epoch"] == [
        *((3, 1), (5, 1), (10, 2)),
    ]
    claim = trained_again.check("training", config, log, Steps(0, 10), "fp32", [])
    assert claim.result == "holds", claim.found
