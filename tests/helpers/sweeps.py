"""Sweeps of the tiny job."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.common import files
from pipeline.experiments.sweeps.plan import ARGUMENTS, SweepPlan
from pipeline.experiments.sweeps.trials import Trials
from tests.helpers import tiny

COMMAND = [
    "${env}",
    "${interpreter}",
    "-m",
    "${program}",
    "train",
    "--config",
    "BASE",
    "tracking.wandb=online",
    ARGUMENTS,
]


SWEEP: dict[str, Any] = {
    "program": "pipeline",
    "command": COMMAND,
    "method": "random",
    "metric": {"name": "epoch/val_top1", "goal": "maximize"},
    "parameters": {
        "optim.lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1},
        "optim.nesterov": {"values": [True, False]},
    },
}
GRID = {"method": "grid", "parameters": {"optim.lr": {"values": [0.02, 1e30, 0.001]}}}


def write_sweep(folder: Path, **changes: Any) -> Path:
    """A sweep of the tiny job, whose runs live in FOLDER/runs; a change of None leaves a key out."""
    base = tiny.config(folder, "tracking.log_every_steps=1").model_dump(mode="json")
    files.write_json(folder / "base.yaml", base | {"run": {"root": str(folder / "runs"), "name": None}})
    tree = {key: value for key, value in (SWEEP | changes).items() if value is not None}
    tree["command"] = [str(folder / "base.yaml") if word == "BASE" else word for word in tree["command"]]
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def objective(values: dict[str, Any]) -> float:
    """A function of the parameters: best at a learning rate of 0.01, and without Nesterov."""
    return 1 - abs(math.log10(values["optim.lr"]) + 2) / 10 - 0.1 * values["optim.nesterov"]


def untrained_trials(path: Path, limit: int, pruner: str | None = None, name: str = "search") -> Trials:
    """Do trials without any training: each rises to its objective in three epochs."""
    trials = Trials(SweepPlan(path, (f"run.name={name}",)), pruner)
    while claim := trials.claim(limit):
        value = objective(claim.values)
        pruned = any(trials.report(claim.number, epoch, value * epoch / 3) for epoch in (1, 2))
        trials.finish(claim.number, "pruned" if pruned else "complete", None if pruned else value)
        claim.lock.close()
    return trials


def claiming_process(path: Path) -> "subprocess.Popen[str]":
    """A process that has claimed the first trial of a sweep, and does nothing."""
    code = (
        "import sys, time; from pathlib import Path; from pipeline.experiments.sweeps.plan import SweepPlan\n"
        "from pipeline.experiments.sweeps.trials import Trials\n"
        "claim = Trials(SweepPlan(Path(sys.argv[1])), None).claim(2); print(claim.number, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    return process
