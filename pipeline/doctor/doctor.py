"""`doctor`: look at a machine before an expensive run, and prove what the run will do. Nothing is kept."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.common import console
from pipeline.common.errors import UserError
from pipeline.config.schema import Config
from pipeline.distributed import process_group
from pipeline.distributed.process_group import Ranks
from pipeline.doctor import communication, data, disk, machine, model, training
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding, State, agreed, of_error
from pipeline.models import precision

STYLES: dict[State, str | None] = {
    "ok": None,
    "warning": "yellow",
    "no-go": "bold red",
    "not applicable": "dim",
}
MARKS: dict[State, str] = {"ok": "ok", "warning": "warning", "no-go": "NO-GO", "not applicable": "-"}


class Check(NamedTuple):
    """needs: checks without whose success this one would say nothing; trains: left out by --quick."""

    name: str
    look: Callable[[CheckContext], Finding]
    needs: tuple[str, ...] = ()
    trains: bool = False


CHECKS = (
    Check("packages", machine.packages),
    Check("code", machine.code),
    Check("device", machine.device),
    Check("precision", machine.precision),
    Check("W&B", machine.tracking),
    Check("data", data.opened),
    Check("agreement", data.agreement),
    Check("pixels", data.pixels, needs=("data",)),
    Check("crops", data.crops, needs=("agreement",)),
    Check("shares", data.shares, needs=("agreement",)),
    Check("start", model.start, needs=("data", "agreement")),
    Check("weights", model.weights, needs=("agreement",)),
    Check("model", model.built, needs=("agreement",)),
    Check("rates", model.rates, needs=("model",)),
    Check("evaluation", data.evaluation, needs=("model",)),
    Check("workers", machine.workers),
    Check("disk", disk.disk, needs=("model",)),
    Check("all-reduce", communication.all_reduce, needs=("model",)),
    Check("memory", training.room, needs=("model",), trains=True),
    Check("first step", training.repeat, needs=("memory",), trains=True),
    Check("speed", training.speed, needs=("first step",), trains=True),
)
WIDTH = max(len(check.name) for check in CHECKS)


def doctor(config: Config, quick: bool = False) -> dict[str, Any]:
    """Run every check, say what each found as it is found, and return all of it with the verdict `go`.

    A check that fails does not keep the others from running. On several ranks all of them take part; the
    result is given on the first.
    """
    missing_gpu = config.train.device == "cuda" and not torch.cuda.is_available()
    device = "cpu" if missing_gpu else config.train.device
    with (
        process_group.join(device, config.distributed.timeout_s) as ranks,
        tempfile.TemporaryDirectory() as scratch,
    ):
        found = _look(config, ranks, Path(scratch), quick)
    if not ranks.is_main:
        return {}
    go = all(finding.state != "no-go" for finding in found.values())
    console.say(_verdict(found), "bold")
    checks = [{"name": name, **vars(finding)} for name, finding in found.items()]
    return {"go": go, "ranks": ranks.world_size, "config": config.run.name, "checks": checks}


def _look(config: Config, ranks: Ranks, scratch: Path, quick: bool) -> dict[str, Finding]:
    subject = CheckContext(config, ranks, precision.resolve_precision(config.train.precision, ranks.device), scratch)
    found: dict[str, Finding] = {}
    lost: set[str] = set()  # checks that others cannot build on
    for check in CHECKS:
        if quick and check.trains:
            finding = Finding("not applicable", "left out by --quick")
        elif because := [name for name in check.needs if name in lost]:
            finding = Finding("not applicable", f"not looked at, because of {' and '.join(because)}")
            lost.add(check.name)
        else:
            finding = agreed(_ask(check, subject), ranks)
            if finding.state == "no-go":
                lost.add(check.name)
        found[check.name] = finding
        _say(check.name, finding)
    return found


def _ask(check: Check, subject: CheckContext) -> Finding:
    try:
        return check.look(subject)
    except UserError as error:
        return of_error(error)


def _say(name: str, finding: Finding) -> None:
    console.say(f"{MARKS[finding.state]:7}  {name:{WIDTH}}  {finding.figures}", STYLES[finding.state])
    if finding.next:
        console.say(f"{'':7}  {'':{WIDTH}}  -> {finding.next}", STYLES[finding.state])


def _verdict(found: dict[str, Finding]) -> str:
    """`no-go: disk, weights; 1 warning: code`."""
    of_state = {state: [name for name, finding in found.items() if finding.state == state] for state in MARKS}
    bad, warned = of_state["no-go"], of_state["warning"]
    words = [f"no-go: {', '.join(bad)}" if bad else f"go: {len(of_state['ok'])} checks are ok"]
    if warned:
        words.append(f"{len(warned)} warning{'s' * (len(warned) > 1)}: {', '.join(warned)}")
    return "; ".join(words)
