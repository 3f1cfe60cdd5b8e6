"""The list of a run's readings of the test split: any of them could be used to choose something.

Who quotes the accuracy can see how often test was read. A reading is in the list before the split is read, so that
none is lost when the process is killed, the disk is full, or the folder cannot be written.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pipeline.common import files
from pipeline.inference.load_model import LoadedModel
from pipeline.runs.directory import RunDirectory


def begin(run: RunDirectory, model: LoadedModel, purpose: str) -> Callable[[float], None]:
    """Enter a reading that is about to begin; the returned function adds its top-1 (0..1), which is null till then.

    The caller holds the evaluation of test (`evaluation_lock`).
    """
    path = run.test_readings_file
    before = path.read_bytes() if path.is_file() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    reading: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": str(model.path),
        "step": model.step,
        "top1": None,
        "purpose": purpose,
    }

    def write() -> None:
        with files.replacing(path) as part:
            part.write_bytes(before + f"{json.dumps(reading)}\n".encode())

    def complete(top1: float) -> None:
        reading["top1"] = top1
        write()

    write()
    return complete


def completed(run: RunDirectory) -> list[str]:
    """When the readings of a run and of its probe were that came to an end, and so have shown a number, in their order.

    A damaged line counts as such a reading.
    """
    paths = run.test_readings_file, run.probe_folder / run.test_readings_file.name
    lines = [line for path in paths if path.is_file() for line in path.read_bytes().splitlines()]
    return sorted(when for line in lines if (when := _completed_at(line)) is not None)


def _completed_at(line: bytes) -> str | None:
    """The time of a reading; None where it was interrupted."""
    try:
        reading = json.loads(line)
        return None if reading["top1"] is None else str(reading["time"])
    except (ValueError, TypeError, LookupError):
        return "a time that is damaged"
