"""A run directory that the program of commit 2b7a41e left, stopped in mid-epoch: today's program goes on with it.

It was made by that program: Adam until epoch 1, then SGD with carried momentum, mixup, EMA, a plateau schedule (whose
key `least_factor` has another name now), SIGTERM at step 9 of 18. The expected numbers are those of that program, with
one line of it changed from step 10 on: all transforms of an image draw from one stream.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.runs.log import read_log

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "run_of_0.1_expected.json").read_text())


def do(verb: str, tmp: Path, *more: str) -> int:
    saved = str(FIXTURES / "run_of_0.1/config.yaml")
    return main.run([verb, "--config", saved, f"data.root={tmp / 'data'}", f"run.root={tmp / 'runs'}", *more])


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the run has gone on to its end, and has been evaluated."""
    tmp = tmp_path_factory.mktemp("old")
    shutil.copytree(FIXTURES / "run_of_0.1", tmp / "runs/old")
    assert [do(verb, tmp) for verb in ("data", "train", "eval")] == [0, 0, 0]
    return tmp


def near(numbers: dict[str, Any]) -> Any:
    """Equal but for the rounding of another processor."""
    return pytest.approx(numbers, rel=1e-3, abs=1e-6)


def test_it_goes_on_where_it_was_stopped_and_ends_as_it_would_have(resumed: Path) -> None:
    records = [
        record
        for record in read_log(resumed / "runs/old/log.jsonl")
        if record["kind"] in ("step", "epoch", "phase")
    ]
    assert [record["step"] for record in records] == [line["step"] for line in EXPECTED["log"]]
    for record, line in zip(records, EXPECTED["log"], strict=True):
        assert record["kind"] == line["kind"]
        assert {name: record[name] for name in line if name != "kind"} == near(
            {name: value for name, value in line.items() if name != "kind"}
        )


def test_its_evaluation_has_the_numbers_of_that_program(resumed: Path) -> None:
    metrics = json.loads((resumed / "runs/old/eval/test/metrics.json").read_text())
    assert {name: metrics[name] for name in EXPECTED["metrics"]} == near(EXPECTED["metrics"])


def test_its_report_is_written_anew(resumed: Path) -> None:
    page = resumed / "runs/old/eval/test/report.html"
    page.unlink()
    assert do("report", resumed) == 0
    assert page.stat().st_size > 10_000


def test_it_can_be_read_by_the_verbs_of_runs(resumed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["runs", str(resumed / "runs")]) == 0
    assert "finished" in capsys.readouterr().out


def test_it_can_be_sent_to_wandb(resumed: Path) -> None:
    assert main.run(["sync", "--offline", str(resumed / "runs/old")]) == 0
    assert list((resumed / "runs/old/wandb").glob("offline-run-*"))
