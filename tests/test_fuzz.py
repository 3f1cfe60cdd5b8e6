"""The fuzzers in short; `make fuzz` runs them in full."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "fuzz"


@pytest.mark.slow
def test_no_case_of_any_class_fails(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), "--cases", "6", "--folder", str(tmp_path / "fuzz")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    lines = {name: numbers for name, *numbers in map(str.split, done.stdout.splitlines()[1:])}
    assert len(lines) == 14
    assert all(numbers[0] == "6" and numbers[3] == "0" for name, numbers in lines.items() if name != "all")


def test_an_unknown_class_is_named() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "birds"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such class: birds; there are configurations," in done.stderr
