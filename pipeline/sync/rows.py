"""Records of a log become rows of a W&B run: which of them may be sent, and under which keys."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """All values of one optimizer step: W&B's `_step`."""

    step: int
    values: dict[str, Any]


def rows(records: Iterable[Record], over: bool) -> list[Row]:
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


def best(records: Sequence[Record]) -> dict[str, Any]:
    """Epoch and step of the run's best look, with its validation values; of the last epoch without validation.

    The rule of training: the highest top-1, of equals the lowest loss, of these the first. Empty before the
    first look.
    """
    looks = [record for record in records if record["kind"] in ("val", "epoch")]
    if not looks:
        return {}
    chosen = looks[-1]
    if chosen["val_top1"] is not None:
        chosen = max(looks, key=lambda look: (look["val_top1"], -look["val_loss"]))
    names = ("epoch", "step", "val_top1", "val_loss")
    return {f"best/{name}": chosen[name] for name in names if chosen[name] is not None}


def _keyed(record: Record) -> dict[str, Any]:
    if record["kind"] == "gradients":
        return {f"gradients/{name}": histogram for name, histogram in record["histograms"].items()}
    named = {f"{record['kind']}/{name}": value for name, value in record.items()}
    skipped = {f"{record['kind']}/{name}" for name in ("kind", "step")}
    return {key: value for key, value in named.items() if key not in skipped and value is not None}
