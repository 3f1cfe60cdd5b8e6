"""A log becomes rows; what cannot be sent is one sentence. No server is needed here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.cli.main import run
from pipeline.common.errors import UserError
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Log
from pipeline.runs.status import Status
from pipeline.wandb_sync.rows import Row, best, build_rows, extremes
from pipeline.wandb_sync.tables import confusion_cells
from pipeline.wandb_sync.tracked_run import Identity, TrackedRun
from tests.helpers import tiny


def record(kind: str, step: int, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, **values, "time": 100.0 + step, "seconds": 1.0 * step}


def values(kind: str, step: int, **named: Any) -> dict[str, Any]:
    keyed = {f"{kind}/{name}": value for name, value in {**named, "seconds": 1.0 * step}.items()}
    return {"_timestamp": 100.0 + step, **keyed}


def test_a_row_holds_all_records_of_its_step() -> None:
    histograms = {"fc.weight": {"counts": [1, 2], "edges": [-1.0, 0.0, 1.0]}}
    rows = build_rows(
        [
            record("step", 1, loss=2.0),
            record("phase", 2, phase="sgd", lr=0.1),
            record("gradients", 2, histograms=histograms),
            record("step", 2, loss=1.5),
            record("epoch", 2, epoch=1, val_top1=None),
            record("step", 3, loss=1.0),
        ],
        is_over=True,
    )
    gradients = {"gradients/fc.weight": histograms["fc.weight"]}
    assert rows == [
        Row(1, values("step", 1, loss=2.0)),
        Row(
            2,
            values("phase", 2, phase="sgd", lr=0.1)
            | gradients
            | values("step", 2, loss=1.5)
            | values("epoch", 2, epoch=1),
        ),
        Row(3, values("step", 3, loss=1.0)),
    ]


def test_the_last_row_waits_until_nothing_can_be_added_to_it() -> None:
    records = [record("step", 4, loss=1.0), record("step", 5, loss=0.5)]
    assert [row.step for row in build_rows(records, is_over=False)] == [4]
    assert [row.step for row in build_rows([*records, record("epoch", 5, epoch=1)], is_over=False)] == [4]
    assert [row.step for row in build_rows([*records, record("step", 6, loss=0.4)], is_over=False)] == [4, 5]
    assert [row.step for row in build_rows(records, is_over=True)] == [4, 5]
    untimed = {"kind": "step", "step": 1, "loss": 2.0}  # of an earlier version
    assert build_rows([untimed], is_over=True) == [Row(1, {"step/loss": 2.0})]
    assert build_rows([], is_over=False) == build_rows([], is_over=True) == []


def test_the_best_validation_is_the_one_that_training_chose() -> None:
    validations = Log(
        [
            record("val", 3, epoch=0.5, val_top1=0.5, val_loss=1.0),
            record("epoch", 6, epoch=1, val_top1=0.5, val_loss=0.9),
            record("epoch", 12, epoch=2, val_top1=0.4, val_loss=0.1),
        ]
    )
    unvalidated = Log([record("step", 1, loss=1.0)])
    assert best(unvalidated) == extremes(unvalidated) == {}
    assert best(validations) == {"best/epoch": 1, "best/step": 6, "best/val_top1": 0.5, "best/val_loss": 0.9}
    assert extremes(validations) == {"epoch/val_top1": 0.5, "epoch/val_loss": 0.1}
    unseen = Log(record("epoch", step, epoch=step, val_top1=None, val_loss=None) for step in (1, 2))
    assert extremes(unseen) == {}
    assert best(unseen) == {"best/epoch": 2, "best/step": 2}


def test_the_confusion_matrix_is_its_cells_that_are_not_0() -> None:
    pairs = [(0, 0, "a", "a"), (0, 1, "a", "b"), (0, 0, "a", "a"), (2, 1, "c", "b")]
    predicted = pd.DataFrame(pairs, columns=["label", "predicted", "class_name", "predicted_name"])
    assert confusion_cells(predicted).to_dict("list") == {
        "class_name": ["a", "a", "c"],
        "predicted_name": ["a", "b", "b"],
        "images": [2, 1, 1],
    }


def test_the_wandb_run_of_a_run_directory_is_drawn_once(tmp_path: Path) -> None:
    tracked, other = (
        TrackedRun(tmp_path, tiny.config(tmp_path, f"tracking.project={name}")) for name in "ab"
    )
    first = tracked.identity()
    assert (first.project, first.entity, first.alerts) == ("a", None, [])
    assert other.identity() == first
    other.note(alerts=["failed in attempt 1"])
    assert tracked.identity() == replace(first, alerts=["failed in attempt 1"])
    (tmp_path / "wandb.json").unlink()
    assert other.identity().id != first.id


def test_a_trial_of_wandbs_agent_is_the_run_that_the_agent_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked = TrackedRun(tmp_path, tiny.config(tmp_path))
    monkeypatch.setenv("WANDB_RUN_ID", "r1")  # alone it says nothing: it may be in a shell for anything
    assert tracked.identity().id != "r1"
    (tmp_path / "wandb.json").unlink()
    for name, value in (("SWEEP_ID", "s"), ("PROJECT", "birds"), ("ENTITY", "club")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert tracked.identity() == Identity("r1", "birds", "club", "s")
    assert json.loads((tmp_path / "wandb.json").read_text())["sweep"] == "s"


def test_a_run_has_one_sender_at_a_time(tmp_path: Path) -> None:
    tracked = TrackedRun(tmp_path, tiny.config(tmp_path))
    with tracked.locked():
        with pytest.raises(UserError, match="another process is sending this run to W&B"):
            with tracked.locked():
                pass
    with tracked.locked():
        pass


def test_a_run_is_over_when_it_finished_or_diverged_and_not_when_it_only_failed(tmp_path: Path) -> None:
    tracked = TrackedRun(tmp_path, tiny.config(tmp_path))
    about = {"host": "h", "pid": 1, "attempts": 1, "started": "", "updated": ""}

    def says(state: str, why: str = "") -> bool:
        (tmp_path / "status.json").write_text(json.dumps({"state": state, "why": why, **about}))
        return tracked.standing().is_over

    assert tracked.standing().is_over  # a run of an earlier version, which left no status
    assert says("finished")
    assert not says("stopped", "stopped by SIGTERM")
    assert not says("failed", "step 7: the loss is nan")
    (tmp_path / "diverged.json").write_text(json.dumps({"step": 7}))
    assert says("failed", "step 7: the loss is nan")
    assert not says("failed", "CUDA out of memory")  # later: what is in diverged.json is of another attempt
    assert not says("running")


def test_a_run_that_ends_while_it_is_looked_at_has_one_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([Status("running", "", "h", 1, 1, "", ""), Status("finished", "", "h", 1, 1, "", "")])
    monkeypatch.setattr(RunDirectory, "read_status", lambda _: next(readings))
    standing = TrackedRun(tmp_path, tiny.config(tmp_path)).standing()
    assert (standing.state, standing.diverged, standing.is_over) == ("running", False, False)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "nowhere: no such run directory"),
        (["tracking.project=x"], "sync: no run is named; give run directories"),
        (["empty"], "config.yaml: missing, so no run has begun here"),
    ],
)
def test_what_is_no_run_is_refused_in_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert run(["sync", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("error:") == 1
