"""An evaluation of a run that still trains: refused, waited for, or said."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.common.errors import Stopped
from pipeline.evaluation import training_state
from pipeline.runs.directory import RunDirectory
from tests.helpers import tiny


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to evaluate and write into."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/tiny/eval", ignore_errors=True)
    return tmp_path


def end_at_the_first_look(
    monkeypatch: pytest.MonkeyPatch, run: Path, ending: BaseException | None = None
) -> None:
    """Mark a run as running, and end its training when an evaluation has waited once."""
    stack = ExitStack()
    stack.enter_context(RunDirectory(run / "runs/tiny").running())

    def end(_seconds: float) -> None:
        if ending is None:
            stack.close()
        else:
            stack.__exit__(type(ending), ending, None)

    monkeypatch.setattr(training_state.time, "sleep", end)


@pytest.mark.parametrize("verb", ["eval", "audit"])
def test_a_run_that_still_trains_is_not_evaluated_without_a_word(
    run: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunDirectory(run / "runs/tiny").running():
        assert tiny.do(verb, run) == 2
    said = capsys.readouterr().err.splitlines()
    assert "is training this run, and its checkpoint will be another one" in said[-1]
    assert "eval.while_training=wait" in said[-1]
    assert not (run / "runs/tiny/test_reads.jsonl").exists()
    assert not (run / "runs/tiny/eval").exists()


def test_its_present_checkpoint_is_evaluated_on_request_and_the_numbers_say_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunDirectory(run / "runs/tiny").running():
        assert tiny.do("eval", run, "eval.while_training=evaluate") == 0
    numbers = json.loads((run / "runs/tiny/eval/test/metrics.json").read_text())
    assert numbers["training"] == "running"
    said = capsys.readouterr().err
    assert "warning:" in said
    assert "the training goes on" in said


def test_wait_evaluates_after_the_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_at_the_first_look(monkeypatch, run)
    assert tiny.do("eval", run, "eval.while_training=wait") == 0
    numbers = json.loads((run / "runs/tiny/eval/test/metrics.json").read_text())
    assert "training" not in numbers


def test_wait_does_not_take_a_stopped_training_for_a_finished_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    end_at_the_first_look(monkeypatch, run, Stopped("stopped by SIGTERM"))
    assert tiny.do("eval", run, "eval.while_training=wait") == 2
    assert "the training has stopped (stopped by SIGTERM)" in capsys.readouterr().err.splitlines()[-1]


def test_a_stopped_run_is_evaluated_and_that_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped), RunDirectory(run / "runs/tiny").running():
        raise Stopped("stopped by SIGTERM")
    assert tiny.do("eval", run) == 0
    assert "what follows is of a checkpoint before its end" in capsys.readouterr().err
    assert json.loads((run / "runs/tiny/eval/test/metrics.json").read_text())["training"] == "stopped"


@pytest.mark.parametrize("verb", ["report", "compare", "predict"])
def test_what_shows_stored_results_of_a_run_that_still_trains_says_so(
    run: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("eval", run) == 0
    shutil.copytree(run / "runs/tiny", run / "runs/other")
    capsys.readouterr()
    with RunDirectory(run / "runs/tiny").running():
        if verb == "report":
            assert tiny.do("report", run) == 0
        elif verb == "predict":
            picture = next(tiny.data_root().rglob("*.jpg"))
            assert tiny.do("predict", run, str(picture)) == 0
        else:
            assert tiny.run(["compare", str(run / "runs/other"), str(run / "runs/tiny")]) == 0
    said = capsys.readouterr().err
    assert f"{run / 'runs/tiny'}: the training goes on" in said
