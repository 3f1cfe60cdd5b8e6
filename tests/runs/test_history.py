"""What is said where history.json and the checkpoints of a run do not name the same processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.common import files
from pipeline.common.errors import CheckpointError, DataError
from pipeline.runs import environment, history
from pipeline.runs.directory import RunDirectory
from pipeline.runs.history import Held, History, TrainingProcess

FIRST = TrainingProcess("2026-01-01T00:00:00+00:00", 0, "a", {"optim": {"lr": 0.1}}, None, [])
SECOND = TrainingProcess("2026-01-02T00:00:00+00:00", 5, "b", {"optim": {"lr": 0.2}}, "last.pt", ["optim.lr"])


def faults(tmp: Path, of_file: list[TrainingProcess], **held: Held) -> list[str]:
    run = RunDirectory(tmp)
    if of_file:
        history.write(run, of_file)
    return list(History.compared(run, held).faults)


def test_a_history_is_read_as_it_was_written_and_a_damaged_one_is_a_sentence(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert history.read(run) == ()
    history.write(run, [FIRST, SECOND])
    assert history.read(run) == (FIRST, SECOND)
    run.history_file.write_text(json.dumps([{"step": 0}]))
    with pytest.raises(DataError, match=r"history\.json: damaged \(0\.time: Field required\); restore it"):
        history.read(run)
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged \(history\.0\.time: Field required\)"):
        Held.of({"step": 0, "history": [{"step": 0}]}, tmp_path / "last.pt")


def test_a_process_of_an_earlier_version_does_not_say_on_what_it_computed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (plain,) = history.plain([FIRST])
    del plain["computed_on"]
    run.history_file.write_text(json.dumps([plain]))
    assert history.read(run) == (FIRST,)
    assert Held.of({"step": 5, "history": [plain]}, tmp_path / "last.pt").starts == (FIRST,)


def test_a_log_is_of_a_training_as_far_as_its_processes_are_the_same(tmp_path: Path) -> None:
    run, other = RunDirectory(tmp_path), replace(FIRST, time="2026-02-01T00:00:00+00:00")
    history.write(run, [FIRST, SECOND])
    assert history.is_of(run, [FIRST, SECOND, replace(SECOND, step=9)])
    assert history.is_of(run, [FIRST, replace(SECOND, step=3)])  # goes back
    assert not history.is_of(run, [other, replace(SECOND, step=3)])
    assert not history.is_of(run, [FIRST, replace(SECOND, step=8)])  # to what the first would have gone on to
    assert history.is_of(RunDirectory(tmp_path / "of an earlier version"), [SECOND])


def test_a_checkpoint_of_an_earlier_process_has_the_beginning_of_the_history(tmp_path: Path) -> None:
    assert not faults(tmp_path, [FIRST, SECOND], best=Held(5, (FIRST,)), last=Held(9, (FIRST, SECOND)))
    # the last process has saved nothing yet
    assert not faults(tmp_path, [FIRST, SECOND], last=Held(5, (FIRST,)))


def test_a_file_that_was_edited_shortened_or_deleted_does_not_fit(tmp_path: Path) -> None:
    held = {"last": Held(9, (FIRST, SECOND))}
    assert faults(tmp_path / "none", [], **held) == ["history.json: missing, and last has a history"]
    for number, other in enumerate(([FIRST], [SECOND], [FIRST, FIRST])):
        said = ["history.json: is not the history in last"]
        assert faults(tmp_path / str(number), other, **held) == said


def test_a_checkpoint_whose_history_was_taken_out_does_not_fit(tmp_path: Path) -> None:
    said = ["history.json: says what trained last, and last has no history"]
    assert faults(tmp_path, [FIRST], last=Held(0, ())) == said
    assert faults(tmp_path, [FIRST], last=Held(5, ())) == said


def test_a_run_of_an_earlier_version_has_none_and_one_that_goes_on_has_a_gap(tmp_path: Path) -> None:
    earlier = {"best": Held(5, ())}
    assert History.compared(RunDirectory(tmp_path), earlier) == History()
    assert not faults(tmp_path, [SECOND], **earlier, last=Held(9, (SECOND,)))
    assert list(History.compared(RunDirectory(tmp_path), earlier).gaps()) == [
        "history.json: begins at step 5, and does not say what trained the steps before"
    ]
    assert not list(History((FIRST, SECOND)).gaps())


def test_a_run_by_this_code_has_a_history(tmp_path: Path) -> None:
    about = {"packages": {}, "code_sha256": environment.code_sha256()}
    files.write_json(RunDirectory(tmp_path).environment_file, about)
    (fault,) = faults(tmp_path, [], last=Held(5, ()))
    assert fault == "history.json: missing, and this code, which trained the run, writes one"
