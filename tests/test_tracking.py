import time
from pathlib import Path

import pytest

from pipeline.tracking import JsonLines, read_lines


def test_the_clocks_of_a_log_go_on_from_the_last_record_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, cpu = iter([100.0, 101.5, 104.0, 9000.0, 9002.0]), iter([1.0, 1.25, 2.0, 50.0, 50.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "process_time", lambda: next(cpu))
    path = tmp_path / "log.jsonl"
    first = JsonLines(path, 0)
    for step in (1, 2):  # the second step was not saved, and is taken again
        first.log({"kind": "step", "step": step})
    first.close()
    later = JsonLines(path, 1)
    later.log({"kind": "step", "step": 2})
    later.close()
    assert [(line["step"], line["seconds"], line["cpu_seconds"]) for _, line in read_lines(path)] == [
        (1, 1.5, 0.25),
        (2, 3.5, 0.75),
    ]
