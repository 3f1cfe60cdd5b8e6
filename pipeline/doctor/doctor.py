"""The verb `doctor`: check machine, data and configuration before an expensive run, and keep nothing."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import torch

from pipeline.common import console
from pipeline.common.errors import UserError
from pipeline.config.schema import Config
from pipeline.distributed import process_group
from pipeline.distributed.process_group import Ranks
from pipeline.doctor import communication, data, disk, machine, model, training
from pipeline.doctor.check import Check, run_checks
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding, State
from pipeline.models.precision import Precision, resolve_precision
from pipeline.training.precision_trial import fastest_precision

STYLES: dict[State, str | None] = {
    "ok": None,
    "warning": "yellow",
    "no-go": "bold red",
    "not applicable": "dim",
}
MARKS: dict[State, str] = {"ok": "ok", "warning": "warning", "no-go": "NO-GO", "not applicable": "-"}


CHECKS = (
    Check("packages", machine.packages),
    Check("code", machine.code),
    Check("device", machine.device),
    Check("precision", machine.precision),
    Check("W&B", machine.tracking),
    Check("workers", machine.workers),
    Check("data", data.open_data),
    Check("agreement", data.agreement),
    Check("pixels", data.pixels),
    Check("digests", data.digests, is_slow=True),
    Check("crops", data.crops),
    Check("shares", data.shares),
    Check("start", model.start),
    Check("weights", model.weights),
    Check("model", model.initial_state),
    Check("passes", model.passes),
    Check("rates", model.learning_rates),
    Check("evaluation", data.evaluation),
    Check("disk", disk.space),
    Check("all-reduce", communication.all_reduce),
    Check("memory", training.memory, is_slow=True),
    Check("first step", training.first_step, is_slow=True),
    Check("speed", training.speed, is_slow=True),
)
WIDTH = max(len(check.name) for check in CHECKS)


def doctor(config: Config, quick: bool = False) -> dict[str, Any]:
    """Run every check, print each finding at once, and return all of them with the verdict `go`.

    A check that fails does not keep the others from running. All ranks take part; the first one returns the
    result, the others nothing.
    """
    missing_gpu = config.train.device == "cuda" and not torch.cuda.is_available()
    train = config.train.model_copy(update={"device": "cpu"}) if missing_gpu else config.train
    findings: dict[str, Finding] = {}
    with (
        process_group.join(train, config.distributed.timeout_s) as ranks,
        tempfile.TemporaryDirectory() as scratch,
    ):
        resolved = ranks.broadcast(_precision(config, ranks))
        context = CheckContext(config, ranks, resolved, Path(scratch))
        for name, finding in run_checks(CHECKS, context, quick=quick):
            findings[name] = finding
            _say(name, finding)
    if not ranks.is_main:
        return {}
    go = all(finding.state != "no-go" for finding in findings.values())
    console.say(_verdict(findings), "bold")
    checks = [{"name": name, **vars(finding)} for name, finding in findings.items()]
    return {"go": go, "ranks": ranks.world_size, "config": config.run.name, "checks": checks}


def _precision(config: Config, ranks: Ranks) -> Precision:
    """The precision of a training; auto's for a network that cannot be tried, as its own check says what is wrong."""
    if config.train.precision == "fastest" and ranks.is_main:
        with contextlib.suppress(UserError):
            return fastest_precision(config, ranks.device)
    return resolve_precision(config.train.precision, ranks.device)


def _say(name: str, finding: Finding) -> None:
    console.say(f"{MARKS[finding.state]:7}  {name:{WIDTH}}  {finding.figures}", STYLES[finding.state])
    if finding.next:
        console.say(f"{'':7}  {'':{WIDTH}}  -> {finding.next}", STYLES[finding.state])


def _verdict(findings: dict[str, Finding]) -> str:
    """`no-go: disk, weights; 1 warning: code`."""
    names = {state: [name for name, finding in findings.items() if finding.state == state] for state in MARKS}
    no_go, warnings = names["no-go"], names["warning"]
    parts = [f"no-go: {', '.join(no_go)}" if no_go else f"go: {len(names['ok'])} checks are ok"]
    if warnings:
        parts.append(f"{len(warnings)} warning{'s' * (len(warnings) > 1)}: {', '.join(warnings)}")
    return "; ".join(parts)
