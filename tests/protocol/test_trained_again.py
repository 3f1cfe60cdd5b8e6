"""Steps of a training are taken again, and compared with its log."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.protocol import trained_again
from pipeline.protocol.trained_again import Steps
from pipeline.runs.directory import RunDirectory
from pipeline.runs.history import TrainingProcess
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


MACHINE = {"device": "H100", "cpu": "Xeon", "cuda": "13.0", "cudnn": 91900, "threads": 8, "ranks": 1}
LOG = Log({"kind": "step", "step": step} for step in (10, 20, 30))


def two_processes(tmp: Path, *more: str, **others: Any) -> list[TrainingProcess]:
    """The second goes on from the run's last checkpoint, of step 7; the first had other settings, or something else."""
    config, other = (tiny.config(tmp, *keys).model_dump(mode="json") for keys in ([], more))
    last = str(tiny.checkpoints(tmp) / "last.pt")
    second = TrainingProcess("2026-01-02T00:00:00+00:00", 7, "a", config, last, [], MACHINE)
    first = replace(second, step=0, resumed_from=None, configuration=other)
    return [replace(first, **others), second]


def test_steps_of_one_process_and_of_one_that_went_on_alike_can_be_taken_again(tmp_path: Path) -> None:
    for more in ([], ["train.max_steps=7"], ["run.name=before"], ["data.workers=3"]):
        assert trained_again.why_not(two_processes(tmp_path, *more), LOG, Steps(0, 10)) is None
    assert trained_again.why_not([], LOG, Steps(0, 10)) is None  # of an earlier version


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"code_sha256": "b"}, "code"),
        ({"computed_on": {**MACHINE, "device": "A100"}}, "device"),
        ({"computed_on": {**MACHINE, "cudnn": 92400}}, "cudnn"),
        ({"computed_on": {**MACHINE, "packages": {"torch": "1.0"}}}, "torch"),
        ({"computed_on": {**MACHINE, "threads": 4, "ranks": 2}}, "threads, ranks"),
    ],
)
def test_steps_that_another_machine_or_code_computed_are_not_taken_again(
    others: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """A run that was preempted on one card and finished on another one is no fault of its log."""
    starts = two_processes(tmp_path, **others)
    said = trained_again.why_not(starts, LOG, Steps(0, 10))
    count = len(named.split(", "))
    assert said == (
        f"steps up to 7 were taken with another {named} ({count} in all) than the last process had; see history.json"
    )
    assert trained_again.why_not(starts, LOG, Steps(7, 20, Path("best.pt"))) is None


@pytest.mark.parametrize(
    ("key", "from_the_first_alone"),
    [("optim.lr=0.5", False), ("train.tf32=true", False), ("model.pretrained=true", True)],
)
def test_steps_of_other_keys_are_not_taken_again(
    key: str, from_the_first_alone: bool, tmp_path: Path
) -> None:
    starts = two_processes(tmp_path, key)
    said = trained_again.why_not(starts, LOG, Steps(0, 10))
    assert said is not None
    assert said.startswith(f"steps up to 7 were taken with another {key.partition('=')[0]} (1 in all)")
    later = trained_again.why_not(starts, LOG, Steps(5, 10, Path("best.pt")))
    assert (later is None) == from_the_first_alone


def test_steps_in_the_log_of_another_run_are_not_taken_again(tmp_path: Path) -> None:
    first, second = two_processes(tmp_path)
    elsewhere = [first, replace(second, step=10, resumed_from="runs/other/checkpoints/last.pt")]
    assert trained_again.why_not(elsewhere, Log(LOG[1:]), Steps(0, 20)) == (
        "the log has no steps up to 10: the run went on from runs/other/checkpoints/last.pt"
    )
    assert trained_again.why_not(elsewhere, LOG, Steps(0, 20)) is None
