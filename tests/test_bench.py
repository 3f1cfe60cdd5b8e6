"""`make bench`: what becomes of measurements, and every part of it, as small as it can be."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench"
PARTS = (
    "loader",
    "step",
    "inference",
    "export",
    "data",
    "start",
    "growth",
    "memory",
    "tracking",
    "ddp",
    "contest",
)
LOADER: dict[str, Any] = {
    "part": "loader",
    "what": "448 of 512 px",
    "ours": 1469.0,
    "unit": "images/s",
    "against": "PIL",
    "other": 108.0,
    "ratio": 13.6,
    "lowest": 11.8,
    "highest": 15.7,
    "pairs": 3,
    "goal": 10.0,
}
PAGE = (
    "# Bench\n\n<!-- bench: loader -->\nold\n<!-- end -->\n\nWords.\n\n<!-- bench: step -->\n<!-- end -->\n"
)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that makes words of measurements."""
    monkeypatch.syspath_prepend(SCRIPT)
    return importlib.import_module("page")


def lines(part: str, *rows: dict[str, Any]) -> list[str]:
    """The lines of a part, as a run of the bench writes them."""
    return [json.dumps(row) for row in ({"part": part, "machine": {"cores": "2"}}, *rows)]


@pytest.mark.parametrize(
    ("changed", "end"),
    [
        ({}, "goal at least 10: met"),
        ({"ratio": 9.9}, "goal at least 10: **missed**"),
        ({"better": "at most"}, "goal at most 10: **missed**"),
        ({"ratio": None, "better": "at most", "goal": 1469.0}, "goal at most 1,469: met"),
        ({"goal": None}, "108 (PIL), 13.60 times (11.80 to 15.70 in 3 pairs)"),
    ],
)
def test_sentence_says_what_was_measured_and_whether_the_goal_is_met(
    page: Any, changed: dict[str, Any], end: str
) -> None:
    assert page.sentence(LOADER | changed).endswith(end)


def test_part_that_is_measured_again_replaces_its_own_lines_alone(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    page.replace_part(path, "loader", lines("loader", LOADER))
    page.replace_part(path, "step", lines("step", LOADER | {"part": "step"}))
    page.replace_part(path, "loader", lines("loader", LOADER | {"ratio": 12.0}))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["part"], row.get("ratio")) for row in rows] == [
        ("step", None),
        ("step", 13.6),
        ("loader", None),
        ("loader", 12.0),
    ]


@pytest.mark.parametrize(
    ("exit_code", "measured", "kept"),
    [(0, 1, "new"), (3, 1, "new"), (1, 1, "old"), (2, 0, "old"), (-9, 1, "old"), (0, 0, "old")],
)
def test_part_that_breaks_off_leaves_the_earlier_measurements(
    page: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exit_code: int,
    measured: int,
    kept: str,
) -> None:
    """A process stands for the part: it prints a measurement, or none, and ends."""
    spec = importlib.util.spec_from_file_location("bench_main", SCRIPT / "__main__.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    path, table = tmp_path / "lines.jsonl", tmp_path / "page.md"
    table.write_text(PAGE)
    page.replace_part(path, "loader", lines("loader", LOADER | {"what": "old"}))
    part, ending = tmp_path / "part", "kill -9 $$" if exit_code < 0 else f"exit {exit_code}"
    said = f"echo '{json.dumps(LOADER | {'what': 'new'})}'\n" * measured
    part.write_text(f"#!/bin/sh\n{said}{ending}\n")
    part.chmod(0o755)
    for name, value in (("LINES", path), ("PAGE", table), ("machine", dict)):
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(sys, "executable", str(part))
    options = bench.Options((), tmp_path, tiny=False, minutes=1)
    assert bench.run(["loader"], options) == (0 if (exit_code, measured) == (0, 1) else 1)
    assert [json.loads(line).get("what") for line in path.read_text().splitlines()] == [None, kept]
    assert ("keeps the earlier ones" in capsys.readouterr().err) == (kept == "old")


def test_tables_of_the_page_are_made_anew_and_its_words_stay(page: Any, tmp_path: Path) -> None:
    path, measured = tmp_path / "page.md", tmp_path / "lines.jsonl"
    path.write_text(PAGE)
    page.replace_part(measured, "loader", lines("loader", LOADER))
    for _ in range(2):
        page.refresh(path, measured)
    text = path.read_text()
    assert "old" not in text
    assert text.count("| at least 10 | met |") == 1
    assert "Measured on: cores 2." in text
    assert "Words." in text
    assert "<!-- bench: step -->\nNot measured yet.\n<!-- end -->" in text


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_part_measures_what_it_says(part: str, tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), part, "--tiny", f"--folder={tmp_path}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout.startswith(f"{part}, "), done.stderr
    assert done.returncode == 0 or part in ("inference", "contest"), done.stderr


def test_unknown_part_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "lodaer"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no part 'lodaer'; there are loader, step" in done.stderr
