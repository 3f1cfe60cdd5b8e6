"""Records of a log become rows of a W&B run: which of them may be sent, and under which keys."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.runs.log import LogRecord, best_record


@dataclass(frozen=True)
class Row:
    """All values of one optimizer step: W&B's `_step`."""

    step: int
    values: dict[str, Any]


def rows(records: Iterable[LogRecord], over: bool) -> list[Row]:
    """The complete rows of a log, in the order of their steps; keys are `KIND/NAME`.

    W&B takes a step once, and then nothing more of it. So the last row is left out, unless the run is `over`: an
    interrupted run may add to it (validation of the same step, say) when it goes on.

    Values that are null are left out; a histogram of gradients stays a mapping of `counts` and `edges`.
    """
    by_step: dict[int, dict[str, Any]] = {}
    for record in records:
        by_step.setdefault(record["step"], {}).update(_keyed(record))
    complete = sorted(by_step) if over else sorted(by_step)[:-1]
    return [Row(step, by_step[step]) for step in complete]


def best(found: Sequence[LogRecord]) -> dict[str, Any]:
    """Epoch, step and validation of the run's best look, as `best/NAME`; of the last epoch where nothing is validated.

    Empty before the first epoch is over.
    """
    epochs = _epochs(found)
    chosen = best_record(found) or (epochs[-1] if epochs else None)
    names = ("epoch", "step", "val_top1", "val_loss")
    return {f"best/{name}": chosen[name] for name in names if chosen[name] is not None} if chosen else {}


def extremes(found: Sequence[LogRecord]) -> dict[str, float]:
    """The highest `epoch/val_top1` and the lowest `epoch/val_loss`: by these W&B's sweeps are to compare runs."""
    values = {
        name: [r[name] for r in _epochs(found) if r[name] is not None] for name in ("val_top1", "val_loss")
    }
    choose: dict[str, Callable[[list[float]], float]] = {"val_top1": max, "val_loss": min}
    return {f"epoch/{name}": choose[name](seen) for name, seen in values.items() if seen}


def _epochs(found: Sequence[LogRecord]) -> list[LogRecord]:
    return [record for record in found if record["kind"] == "epoch"]


def _keyed(record: LogRecord) -> dict[str, Any]:
    """The values of a record; W&B's `_timestamp` is when it was written, whenever it is sent."""
    # logs had no time before they had a version
    written = {"_timestamp": record["time"]} if "time" in record else {}
    if record["kind"] == "gradients":
        return written | {f"gradients/{name}": values for name, values in record["histograms"].items()}
    skipped = ("kind", "step", "time")
    values = {name: value for name, value in record.items() if name not in skipped and value is not None}
    return written | {f"{record['kind']}/{name}": value for name, value in values.items()}
