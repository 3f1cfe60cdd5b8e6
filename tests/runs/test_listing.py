import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.main import run
from pipeline.common import files
from pipeline.config.load import dump_config
from pipeline.runs import listing
from pipeline.runs.directory import RunDirectory
from tests.helpers import tiny


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """Three runs: `whole` was tested, `lower` was stopped after an epoch, and `old/early` has no status."""
    folder = tmp_path / "runs"
    for name, *words in (("whole",), ("lower", "optim.lr=0.005", "seed=3"), ("old/early", "seed=4")):
        shutil.copytree(trained / "runs/tiny", folder / name, ignore=shutil.ignore_patterns("checkpoints"))
        settings = tiny.config(
            tmp_path, *words, f"run.name={Path(name).name}", f"tracking.group={Path(name).name}"
        )
        files.write_text(folder / name / "config.yaml", dump_config(settings))
    metrics = {"split": "test", "n": 18, "top1": 0.25, "top5": 0.9, "per_class_mean": 0.25}
    files.write_json(folder / "whole/eval/test/metrics.json", metrics)
    lower = RunDirectory(folder / "lower")
    first = lower.read_log().epochs()[0]
    files.write_text(lower.log_file, json.dumps({**first, "val_top1": 0.5, "seconds": 3723.4}) + "\n")
    status = lower.read_status()
    assert status is not None
    stopped = replace(status, state="stopped", why="stopped by SIGTERM", started="2026-01-02T03:04:05+00:00")
    files.write_json(lower.status_file, asdict(stopped))
    (folder / "old/early/status.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("status.json", b"{", "status.json: damaged"),
        ("status.json", b"\xff", "status.json: damaged"),
        ("log.jsonl", b"\xff\n", "log.jsonl, line 1: no record of a log"),
        ("config.yaml", b"train: 3", "config.yaml: damaged (train is no section)"),
        ("config.yaml", b"\xff", "config.yaml: not readable as YAML"),
        ("eval/test/metrics.json", b'{"split": "test"}', "metrics.json: "),
        ("eval/test/metrics.json", b'{"split": "test", "top1": null}', "metrics.json: "),
    ],
)
def test_a_damaged_run_is_named_and_the_others_are_listed(
    name: str, content: bytes, words: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = runs / "lower" / name
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_bytes(content)
    assert run(["runs", str(runs), "--csv"]) == 0
    said = capsys.readouterr()
    assert [Path(row["run"]).name for row in rows(said.out)] == ["whole", "early"]
    (warning,) = said.err.splitlines()
    assert warning.startswith("warning: run lower is not listed: ")
    assert words in warning
    assert damaged.read_bytes() == content


def test_runs_of_which_none_can_be_read_are_an_error(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("whole", "lower", "old/early"):
        (runs / folder / "log.jsonl").write_bytes(b"nonsense\n")
    assert run(["runs", str(runs)]) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3
    assert error == "error: no run can be read; the warnings say why"


def rows(out: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(out)))


def test_the_list_says_what_each_run_is_and_what_came_of_it(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["runs", str(runs)]) == 0
    head, first, second, third = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "run",
        "state",
        "epochs",
        "best",
        "at",
        "test",
        "time",
        "started",
        "differs",
        "in",
    ]
    assert first.split() == [
        *(
            "lower",
            "stopped",
            "1/3",
            "0.5000",
            "1",
            "1:02:03",
            "2026-01-02T03:04:05Z",
            "optim.lr=0.005",
            "seed=3",
        )
    ]
    assert second.split()[:3] == ["whole", "finished", "3/3"]
    assert second.split()[5] == "0.2500"
    assert "seed" not in second  # it is the default's there
    assert third.split()[:3] == ["old/early", "unknown", "3/3"]
    assert third.split()[-1] == "seed=4"


def test_csv_has_a_column_for_each_key_that_differs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", str(runs), "--csv", "--sort", "run"]) == 0
    lower, early, whole = rows(capsys.readouterr().out)
    assert [*lower][-2:] == ["optim.lr", "seed"]
    assert [(row["optim.lr"], row["seed"]) for row in (lower, early, whole)] == [
        ("0.005", "3"),
        ("0.02", "4"),
        ("0.02", "0"),
    ]
    best = RunDirectory(runs / "whole").read_log().best()
    assert best is not None
    assert (
        whole.items()
        >= {
            "run": str(runs / "whole"),
            "state": "finished",
            "epochs": "3",
            "best_val_top1": str(best["val_top1"]),
            "best_epoch": str(best["epoch"]),
            "test_top1": "0.25",
        }.items()
    )
    assert lower["test_top1"] == ""


@pytest.mark.parametrize(
    ("column", "first"),
    [("best", "lower"), ("test", "whole"), ("epochs", "old/early"), ("seconds", "lower"), ("state", "whole")],
)
def test_the_list_is_sorted(runs: Path, column: str, first: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", str(runs), "--csv", "--sort", column]) == 0
    assert rows(capsys.readouterr().out)[0]["run"] == str(runs / first)


def test_two_runs_differ_in_configuration_environment_and_result(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = files.read_json(runs / "lower/environment.json", dict[str, Any])
    files.write_json(runs / "lower/environment.json", {**environment, "host": "elsewhere", "time": "later"})
    assert run(["runs", "diff", str(runs / "whole"), str(runs / "lower")]) == 0
    differences = json.loads(capsys.readouterr().out)["differences"]
    assert differences["config.optim.lr"] == [0.02, 0.005]
    assert differences["config.seed"] == [0, 3]
    assert differences["environment.host"] == [environment["host"], "elsewhere"]
    assert differences["result.state"] == ["finished", "stopped"]
    assert differences["result.test_top1"] == [0.25, None]
    assert not {"config.run.name", "environment.time"} & differences.keys()


def test_who_reads_the_list_may_stop_early(runs: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "runs", str(runs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_runs_are_deleted_when_the_answer_is_yes(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = [str(runs / "whole"), str(runs / "lower")]
    for answer in ("\n", "no\n", "n\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert run(["runs", "rm", *two]) == 0
        assert (runs / "whole").is_dir()
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert run(["runs", "rm", *two]) == 0
    assert [path.name for path in runs.iterdir()] == ["old"]
    assert run(["runs", "rm", str(runs / "old/early"), "--yes"]) == 0
    assert not (runs / "old/early").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{runs}/none"], "none: no such folder"),
        (["{runs}/whole/csv"], "no such folder"),
        (["{runs}", "--sort", "colour"], "--sort colour: no such column; take started, run,"),
        (["diff", "{runs}/whole"], "give a folder, or diff RUN RUN"),
        (["diff", "{runs}/whole", "{runs}/old"], "old: no run directory"),
        (["rm"], "give a folder, or diff RUN RUN"),
        (["rm", "{runs}"], "runs: no run directory"),
        (["rm", "{runs}/whole"], "nobody is there to be asked; give --yes"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    runs: Path,
    words: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run(["runs", *(word.format(runs=runs) for word in words)]) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    assert (runs / "whole").is_dir()


def test_a_folder_without_runs_and_a_run_that_is_running(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["runs", str(tmp_path / "empty")]) == 2
    assert "holds no run" in capsys.readouterr().err
    with RunDirectory(runs / "whole").running():
        assert run(["runs", str(runs)]) == 0
        assert "running" in capsys.readouterr().out
        assert run(["runs", "rm", str(runs / "whole"), "--yes"]) == 2
    assert "is running; stop it first" in capsys.readouterr().err
    assert (runs / "whole").is_dir()


def test_a_run_that_begins_to_run_during_the_question_is_not_deleted(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as running:

        def begins(*_: int) -> bool:
            running.enter_context(RunDirectory(runs / "whole").running())
            return True

        monkeypatch.setattr(listing, "_agreed", begins)  # the question waits for a person
        assert run(["runs", "rm", str(runs / "whole")]) == 2
        assert "is training this run" in capsys.readouterr().err
    assert (runs / "whole/log.jsonl").is_file()
