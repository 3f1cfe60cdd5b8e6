"""Some steps of a training, taken again from its saved configuration or from a checkpoint, and compared with its log.

A run is bit-identical on a CPU; on a GPU, where `train.deterministic` is set. Elsewhere losses are compared within a
tolerance, which rounding leaves behind in a few steps.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.errors import Diverged, UserError, name_some
from pipeline.config.key_effects import effect_of
from pipeline.config.load import completed, differences
from pipeline.config.schema import Config
from pipeline.protocol import differing
from pipeline.protocol.claims import Claim
from pipeline.runs import environment
from pipeline.runs.directory import RunDirectory
from pipeline.runs.history import FILE, TrainingProcess
from pipeline.runs.log import FIELDS, Log
from pipeline.training import trainer

SPEEDS = {"images_per_s", "data_wait", "memory_gib"}
AT_THE_BEGINNING = {"model.pretrained", "model.weights", "train.start_from"}
"""keys that matter before the first step alone, so that a run may go on with other ones"""
TOLERANCE = 0.02
"""by other code or packages, or on another machine: relative, of losses and norms of gradients in fp32"""
TOLERANCE_16 = 0.1
"""the same in bf16 and fp16"""


class Steps(NamedTuple):
    """Which steps to take: those after `since`, up to `until`; start: a checkpoint of step `since`, None: step 0."""

    since: int
    until: int
    start: Path | None = None


def steps_to_take(log: Log, wanted: int, since: int = 0, start: Path | None = None) -> Steps | None:
    """At least `wanted` steps after `since`, to a record of the log; to its last one where there are fewer; or None."""
    recorded = [
        record["step"] for record in log if record["kind"] in ("step", "epoch") and record["step"] > since
    ]
    enough = [step for step in recorded if step >= since + wanted]
    return Steps(since, min(enough) if enough else max(recorded), start) if recorded else None


def why_not(starts: Sequence[TrainingProcess], log: Log, steps: Steps) -> str | None:
    """Why steps cannot be taken again as the last process of a run would take them; None where they can.

    config.yaml and environment.json are those of the last process, and an earlier one may have taken these steps.

    Args:
        starts: the processes that trained the run; none of an earlier version.
    """
    for start, later in pairwise(starts):
        if max(start.step, steps.since) >= min(later.step, steps.until):  # took none of them that was kept
            continue
        until = f"steps up to {later.step}"
        if not _are_logged(later, log, steps.since):
            return f"the log has no {until}: the run went on from {later.resumed_from}"
        if other := list(_other(start, starts[-1], from_the_first=steps.start is None)):
            return f"{until} were taken with another {name_some(other)} than the last process had; see {FILE}"
    return None


def _are_logged(later: TrainingProcess, log: Log, since: int) -> bool:
    """Whether the steps before a process are in the log, as they are where it went on from the run's own last one."""
    own = later.configuration["run"]
    last = RunDirectory(Path(own["root"]) / str(own["name"])).checkpoint("last")
    return Path(str(later.resumed_from)) == last or any(
        since < record["step"] <= later.step for record in log if record["kind"] in ("step", "epoch")
    )


def _other(start: TrainingProcess, last: TrainingProcess, *, from_the_first: bool) -> Iterator[str]:
    """What may make other numbers, and was not the same for two processes: keys, code, and what of the machine."""
    for key, *_ in differences(completed(start.configuration), completed(last.configuration)):
        if effect_of(key).on_resume != "free" or (from_the_first and key in AT_THE_BEGINNING):
            yield key
    before, now = ({"code_sha256": each.code_sha256, **each.computed_on} for each in (start, last))
    yield from environment.other_bits(before, now)
    yield from (key for key in ("threads", "ranks") if before.get(key) != now.get(key))


def check(
    about: str, config: Config, log: Log, steps: Steps, precision: str, otherwise: Sequence[str]
) -> Claim:
    """Whether the steps have the losses, norms and validations of the log.

    Args:
        precision: in which the run was trained.
        otherwise: what differs here, so that bits may too; empty: the same bits are promised.
    """
    try:
        found = _take(config, steps, precision)
    except Diverged as error:
        return Claim(about, "fails", [str(error)])
    except UserError as error:
        return Claim.unchecked(about, str(error))
    relative = (TOLERANCE if precision == "fp32" else TOLERANCE_16) if otherwise else 0.0
    how = f"within {relative:.0%}, with other {', '.join(otherwise)}" if otherwise else "the same bits"
    compared = f"steps {steps.since + 1} to {steps.until}, taken again, have the losses of log.jsonl: {how}"
    return Claim.of(about, list(_faults(log, found, steps, relative)), compared)


def _take(config: Config, steps: Steps, precision: str) -> Log:
    """The log of the steps, in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        own: dict[str, Any] = {
            "max_steps": steps.until,
            "checkpoint_every_steps": None,
            "checkpoint_every_minutes": None,
        }
        if steps.start is None:
            own |= {"resume": "never", "precision": precision}
        else:
            own |= {"resume": str(steps.start)}
        logs = {"tensorboard": False, "csv": False, "wandb": "disabled", "gradients_every_steps": None}
        config = config.model_copy(
            update={
                "run": config.run.model_copy(update={"root": Path(folder), "name": "again"}),
                "train": config.train.model_copy(update={**own, "keep_checkpoints": 1}),
                "tracking": config.tracking.model_copy(update=logs),
            }
        )
        trainer.train(config)
        return RunDirectory(config.run_dir).read_log()


def _faults(log: Log, found: Log, steps: Steps, relative: float) -> Iterator[str]:
    """A clause for each value that differs. At the last step only what both have counts: there the trial ended."""
    stored, again, cuts = _by_place(log, steps), _by_place(found, steps), _cuts(log)
    for place in sorted(stored.keys() | again.keys(), key=lambda place: (place[1], place[0])):
        kind, step = place
        if step in cuts and kind in ("epoch", "val", "fp16"):
            continue
        name = f"log.jsonl, the record {kind!r} of step {step}"
        if place in stored and place in again:
            for field in FIELDS[kind].keys() - SPEEDS:
                before, now = stored[place][field], again[place][field]
                if before != now and not (relative and differing.same(before, now, relative)):
                    yield f"{name}: {field} is {before}, and {now} when the steps are taken again"
        elif step < steps.until or kind == "step":
            yield f"{name}: is there, and not found again" if place in stored else f"{name}: is missing"


def _by_place(log: Log, steps: Steps) -> dict[tuple[str, int], Mapping[str, Any]]:
    return {
        (record["kind"], record["step"]): record
        for record in log
        if steps.since < record["step"] <= steps.until and record["kind"] != "gradients"
    }


def _cuts(log: Log) -> set[int]:
    """Steps at which `train.max_steps` had ended a run that went on: a training without that end has no look there."""
    ends = {record["epoch"]: record["step"] for record in log if record["kind"] == "epoch"}
    return {
        record["step"]
        for record in log
        if record["kind"] == "epoch" and record["step"] < ends[record["epoch"]]
    }
