"""log.jsonl, the one source of a training's numbers: a record a line, written as it happens.

Everything else that shows them (W&B, TensorBoard, tables, curves) is made from these lines, then or later.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.common import files
from pipeline.common.errors import DataError, named

LogRecord = Mapping[str, Any]

SCHEMA, VERSION = "plumage/log", 1
STEP_BEGINS = (b'{"kind": "step"', b'{"kind": "gradients"')
HEADER = {"kind": "log", "step": 0, "schema": SCHEMA, "version": VERSION}
CLOCKS = {
    "time": "when it was written, seconds since 1970",
    "seconds": "wall time of the run so far; interruptions do not count",
    "cpu_seconds": "processor time of the run so far in this process",
}
ALL = {"kind": "kind of the record", "step": "optimizer steps taken, from 1; 0: before the first one"}
RATES = {"lr": "learning rate of the step", "momentum": "of SGD, or Adam's first beta"}
NORM = "of the whole gradient, before clipping"
# The fields of each kind beside those of ALL and CLOCKS. A value that is not finite, or not there, is null.
FIELDS: dict[str, dict[str, str]] = {
    "step": {**RATES, "loss": "mean over the images of the step, nats", "grad_norm": NORM},
    "gradients": {
        "histograms": "of each weight's gradient: name -> {counts: n integers, edges: n + 1 values}"
    },
    "val": {
        "epoch": "epochs so far, a fraction",
        "val_loss": "mean cross-entropy on validation, nats",
        "val_top1": "top-1 accuracy on validation, 0..1",
    },
    "epoch": {
        "epoch": "epochs completed",
        "phase": "name of the optimizer",
        "lr": "learning rate of the epoch's last step",
        "momentum": "of the epoch's last step",
        "train_loss": "mean over the epoch's images as trained, nats",
        "train_top1": "of the same, 0..1",
        "val_loss": "mean cross-entropy on validation, nats",
        "val_top1": "top-1 accuracy on validation, 0..1",
        "grad_norm": NORM + ", mean over the epoch's steps that were not skipped",
        "images_per_s": "trained, over all ranks; without steps that compile (`train.compile`), and null if all did",
        "data_wait": "share of that time spent waiting for a batch, 0..1",
        "memory_gib": "peak of the process, or of the GPU",
    },
    "phase": {
        "epoch": "epochs so far, a fraction",
        "phase": "name of the optimizer that takes this step and those after it",
        "lr": "its learning rate",
    },
    "fp16": {
        "epoch": "epochs completed",
        "loss_scale": "factor of the loss in the epoch's next step, so that small gradients do not vanish",
        "skipped_steps": "of the epoch: their gradients were not finite, and halved the scale",
    },
}
NEVER_NULL = {"epoch", "phase", "lr", "train_loss", "train_top1", "histograms"}
TYPES: dict[str, Any] = {"phase": str, "histograms": dict}  # all other fields are numbers


class Log(list[dict[str, Any]]):
    """The records of a run in their order, without the header."""

    def epochs(self) -> list[dict[str, Any]]:
        """The records of completed epochs."""
        return [record for record in self if record["kind"] == "epoch"]

    def validations(self) -> list[dict[str, Any]]:
        """The records of validation in the order of their steps: at the end of an epoch, and within epochs.

        Epochs without validation are among them; their `val_top1` and `val_loss` are None.
        """
        records = [record for record in self if record["kind"] in ("val", "epoch")]
        return sorted(records, key=lambda record: record["step"])

    def best(self) -> LogRecord | None:
        """The record whose validation chose the best checkpoint; None before anything is validated."""
        return best_record(self)


class LogWriter:
    """Appends records to a run's log, each with the clocks.

    On opening it cuts off a half line that a kill left at the end, and the records beyond `step`, whose steps
    will be taken again: an interrupted run has the log of one that was not interrupted.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Open the log of a run that continues from `step`; a new log begins with the header.

        Raises:
            DataError: the log is of a later version, or damaged.
        """
        size_bytes, has_header = 0, False
        last: Mapping[str, Any] = HEADER
        for line, record in _lines(path):
            has_header |= not size_bytes and record["kind"] == "log"
            if record["step"] <= step or record["kind"] == "log":
                size_bytes, last = size_bytes + len(line), record
        if has_header:
            os.truncate(path, size_bytes)
        else:  # a new log, or one from before there were headers
            kept = [line for line, record in _lines(path) if record["step"] <= step]
            with files.replacing(path) as part:
                part.write_bytes(json.dumps(HEADER).encode() + b"\n" + b"".join(kept))
        self._path, self._stream = path, path.open("a", encoding="utf-8")
        self._clocks = [
            (name, clock, last.get(name, 0.0) - clock())
            for name, clock in (("seconds", time.monotonic), ("cpu_seconds", time.process_time))
        ]

    def append(self, record: LogRecord) -> LogRecord:
        """Write a record so that it survives a kill of the process; return it as it was written."""
        expected = FIELDS[record["kind"]].keys() | ALL.keys()
        assert record.keys() == expected, f"fields {record.keys() ^ expected} of {record['kind']}"
        clocks = {name: round(before + clock(), 3) for name, clock, before in self._clocks}
        written = {**_finite(record), "time": round(time.time(), 3), **clocks}
        with named(self._path):
            self._stream.write(json.dumps(written, allow_nan=False) + "\n")
            self._stream.flush()
        return written

    def close(self) -> None:
        """Sync and close the file."""
        with named(self._path), self._stream:
            os.fsync(self._stream.fileno())


def read_log(path: Path, *, steps: bool = True) -> Log:
    """The records of a log; none where there is no log. A half line at the end is left out.

    Args:
        steps: whether to read the records of steps, too, which are most of a log; false: the last one alone, which
            tells how long the run took.

    Raises:
        DataError: the log is of a later version, or damaged.
    """
    return Log(records(path, steps=steps))


def records(path: Path, *, steps: bool = True) -> Iterator[dict[str, Any]]:
    """What `read_log` reads, one after the other."""
    return (record for _, record in _lines(path, steps=steps) if record["kind"] != "log")


def best_record(records: Iterable[LogRecord]) -> LogRecord | None:
    """The validation with the highest top-1, of equals the one with the lowest loss; None without validation."""
    validated = [record for record in records if record.get("val_top1") is not None]

    def rank(record: LogRecord) -> tuple[float, float]:
        loss = record["val_loss"]  # null: not finite
        return record["val_top1"], -math.inf if loss is None else -loss

    return max(validated, key=rank, default=None)


def _lines(path: Path, *, steps: bool = True) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The complete lines of a log, each with its record; the header is the first.

    Args:
        steps: see `read_log`.
    """
    for number, line in _complete_lines(path, steps):
        try:
            record = _complete(json.loads(line.decode("utf-8")))
            if number == 1 and record.get("version", VERSION) > VERSION:
                raise DataError(
                    f"{path}: has version {record['version']} of {SCHEMA} and this program "
                    f"knows {VERSION}; update plumage"
                )
            _check(record)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: no record of a log; take that line out, or restore the file"
            ) from error
        yield line, record


def _complete_lines(path: Path, steps: bool) -> Iterator[tuple[int, bytes]]:
    """The lines that end, with their numbers."""
    if not path.is_file():
        return
    skipped: tuple[int, bytes] | None = None
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                break
            if not steps and line.startswith(STEP_BEGINS):
                skipped = number, line
            else:
                skipped = None
                yield number, line
    if skipped is not None:
        yield skipped


def _complete(record: dict[str, Any]) -> dict[str, Any]:
    """A record with null for the fields of its kind that it does not have."""
    return {**record, **dict.fromkeys(FIELDS.get(record["kind"], {}).keys() - record.keys())}


def _check(record: dict[str, Any]) -> None:
    """Raise an error unless each field of a record has its type."""
    if not isinstance(record["kind"], str) or type(record["step"]) is not int or record["step"] < 0:
        raise TypeError
    for name in FIELDS.get(record["kind"], ()):
        _check_value(record[name], TYPES.get(name, (int, float)), may_be_null=name not in NEVER_NULL)
    for name in CLOCKS.keys() & record.keys():
        _check_value(record[name], (int, float))
    if record["kind"] == "epoch" and record["epoch"] <= 0:
        raise ValueError
    for histogram in record.get("histograms", {}).values():
        if len(histogram["edges"]) != len(histogram["counts"]) + 1:
            raise ValueError
        for value in (*histogram["edges"], *histogram["counts"]):
            _check_value(value, (int, float))


def _check_value(value: Any, kind: Any, *, may_be_null: bool = False) -> None:
    if value is None and may_be_null:
        return
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError
    if isinstance(value, int | float) and not math.isfinite(value):
        raise ValueError


def _finite(record: LogRecord) -> dict[str, Any]:
    """Infinite values and NaN become None: JSON has no word for them. The first steps of fp16 have such gradients."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
