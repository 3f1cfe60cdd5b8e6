"""`make gpu-check`: all of it small on a CPU, and what it concludes from the lines of a run on a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "scripts" / "gpu_check"
ON_GPU: list[dict[str, Any]] = [
    {"check": "machine", "device": "a GPU"},
    {"check": "syncs", "case": "plain", "lines": {}},
    {"check": "syncs", "case": "mixup", "lines": {"mixing.py:51": 2}},
    {"check": "parity", "case": "fp32", "first": 1e-6, "largest": 9e-5},
    {"check": "auto", "images": 512, "share_of_memory": 0.9},
    {"check": "step", "case": "ours", "images_per_s": 990.0},
    {"check": "step", "case": "bare loop", "images_per_s": 1000.0},
    {"check": "resume", "tensors": 300, "different": 0},
    {"check": "half", "case": "fp32", "last_loss": 5.0},
    {"check": "half", "case": "fp16", "last_loss": 5.1},
    {"check": "compiled", "case": "ours, compiled", "images_per_s": 1280.0, "ms": 50.0, "host_ms": 9.0},
    {"check": "compiled", "case": "bare loop, compiled", "images_per_s": 1300.0},
    {"check": "graphs", "case": "compiled", "images_per_s": 500.0},
    {"check": "graphs", "case": "CUDA graphs", "images_per_s": 800.0, "losses_apart": 0.0},
    {"check": "whole_runs", "case": "compiled, ema", "steps": 76, "epoch_s": 4.2, "data_wait": 0.01},
]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def verdicts(tmp_path: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Goal -> verdict, as the table of an earlier run's lines says."""
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("--table", path)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("### ")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {goal: verdict for goal, _, verdict in cells[2:]}


def test_goals_are_met_missed_or_not_measured(tmp_path: Path) -> None:
    assert set(verdicts(tmp_path, ON_GPU).values()) == {"met"}
    assert set(verdicts(tmp_path, ON_GPU[:1]).values()) == {"not measured"}


@pytest.mark.parametrize(
    ("check", "case", "changed", "missed"),
    [
        ("syncs", "plain", {"lines": {"step.py:77": 2}}, "no wait"),
        ("parity", "fp32", {"largest": 2e-4}, "losses within 1e-4"),
        ("auto", None, {"share_of_memory": 0.4}, "auto uses more"),
        ("step", "ours", {"images_per_s": 970.0}, "a step as fast"),
        ("resume", None, {"different": 1}, "a deterministic run"),
        ("half", "fp16", {"last_loss": 6.0}, "fp16 learns"),
        ("compiled", "ours, compiled", {"host_ms": 20.0}, "the host is done"),
        ("compiled", "bare loop, compiled", {"images_per_s": 1400.0}, "a compiled step"),
        ("graphs", "CUDA graphs", {"images_per_s": 490.0}, "CUDA graphs"),
        ("graphs", "CUDA graphs", {"losses_apart": 2e-3}, "CUDA graphs"),
        ("whole_runs", "compiled, ema", {"data_wait": 0.05}, "less than 3 %"),
        ("whole_runs", "compiled, ema", {"epoch_s": 4.5}, "an epoch takes"),
    ],
)
def test_a_number_that_is_too_low_or_high_misses_its_goal(
    tmp_path: Path, check: str, case: str | None, changed: dict[str, Any], missed: str
) -> None:
    rows = [row | changed if (row["check"], row.get("case")) == (check, case) else row for row in ON_GPU]
    found = {goal for goal, verdict in verdicts(tmp_path, rows).items() if verdict == "**missed**"}
    assert len(found) == 1
    assert found.pop().startswith(missed)


def test_lines_that_wait_are_named_in_the_table_of_their_check(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ON_GPU))
    assert "| mixup | mixing.py:51 x2 |" in run("--table", path).stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to check")
def test_without_a_gpu_it_says_so() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stderr == "error: no CUDA device is visible; on a CPU, --tiny shows that the checks work\n"


def check_tiny(tmp_path: Path, *more: str) -> dict[str, list[dict[str, Any]]]:
    """The lines of a small run, by check."""
    out = tmp_path / "lines.jsonl"
    done = run("--tiny", "--out", out, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, out.read_text().splitlines()):
        found.setdefault(row["check"], []).append(row)
    return found


def test_what_is_exact_is_so_on_a_cpu(tmp_path: Path) -> None:
    found = check_tiny(tmp_path, "--only", "parity", "resume", "nccl")
    (resumed,) = found["resume"]
    assert resumed["tensors"] > 100
    assert resumed["different"] == 0
    assert [row["largest"] for row in found["parity"]] == [0.0]
    assert found["nccl"][-1]["sum"] == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_all_of_it_runs_small(tmp_path: Path) -> None:
    found = check_tiny(tmp_path)
    assert len(found) == 14
    assert all(row["images_per_s"] > 0 for row in found["step"] + found["compiled"] + found["loader"])
