"""Turns records of a log into rows of a W&B run: which of them may be sent, and under which keys."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.runs.log import Log, LogRecord


@dataclass(frozen=True)
class Row:
    """All values of one optimizer step: W&B's `_step`."""

    step: int
    values: dict[str, Any]


def build_rows(records: Iterable[LogRecord], is_over: bool) -> list[Row]:
    """The complete rows of a log, in the order of their steps; keys are `KIND/NAME`.

    W&B accepts each step once. So the last row is left out unless the run is over: an interrupted run may add to
    it when it continues, for example the validation of the same step.

    Values that are null are left out; a histogram of gradients stays a mapping of `counts` and `edges`.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for record in records:
        by_step.setdefault(record["step"], {}).update(_keyed(record))
    complete = sorted(by_step) if is_over else sorted(by_step)[:-1]
    return [Row(step, by_step[step]) for step in complete]


def best(log: Log) -> dict[str, Any]:
    """Epoch, step and result of the best validation as `best/NAME`; those of the last epoch without validation.

    Empty before the first epoch is over.
    """
    epochs = log.epochs()
    chosen = log.best() or (epochs[-1] if epochs else None)
    names = ("epoch", "step", "val_top1", "val_loss")
    return {f"best/{name}": chosen[name] for name in names if chosen[name] is not None} if chosen else {}


def extremes(log: Log) -> dict[str, float]:
    """The highest `epoch/val_top1` and the lowest `epoch/val_loss`: W&B's sweeps compare runs by these."""
    values = {
        name: [record[name] for record in log.epochs() if record[name] is not None]
        for name in ("val_top1", "val_loss")
    }
    choose: dict[str, Callable[[list[float]], float]] = {"val_top1": max, "val_loss": min}
    return {f"epoch/{name}": choose[name](series) for name, series in values.items() if series}


def _keyed(record: LogRecord) -> dict[str, Any]:
    """The values of a record by W&B's keys; `_timestamp` is the time of writing, not that of sending."""
    # logs had no time before they had a version
    timestamp = {"_timestamp": record["time"]} if "time" in record else {}
    if record["kind"] == "gradients":
        return timestamp | {f"gradients/{name}": values for name, values in record["histograms"].items()}
    skipped = ("kind", "step", "time")
    values = {name: value for name, value in record.items() if name not in skipped and value is not None}
    return timestamp | {f"{record['kind']}/{name}": value for name, value in values.items()}
