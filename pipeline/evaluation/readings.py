"""The list of a run's readings of the test split: any of them could be used to choose something.

Who quotes the accuracy can see how often test was read. A reading is in the list before the split is read, so that
none is lost when the process is killed, the disk is full, or the folder cannot be written.
"""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from pipeline.common import files
from pipeline.inference.load_model import LoadedModel
from pipeline.runs.directory import RunDirectory

EVALUATION, CONFIRMATORY = "eval", "eval, confirmatory"
"""purposes of a reading"""


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
    return sorted(when for when, _ in _completed(run))


def are_confirmatory(run: RunDirectory) -> bool:
    """Whether the first reading that came to an end was confirmatory, and no later one an evaluation."""
    purposes = [purpose for _, purpose in sorted(_completed(run))]
    return purposes[:1] == [CONFIRMATORY] and EVALUATION not in purposes


def _completed(run: RunDirectory) -> Iterator[tuple[str, str]]:
    """Time and purpose of the readings that came to an end."""
    paths = run.test_readings_file, run.probe_folder / run.test_readings_file.name
    for line in (line for path in paths if path.is_file() for line in path.read_bytes().splitlines()):
        try:
            reading = json.loads(line)
            found = None if reading["top1"] is None else (str(reading["time"]), str(reading.get("purpose")))
        except (ValueError, TypeError, LookupError, AttributeError):
            found = ("a time that is damaged", "")
        if found is not None:
            yield found
