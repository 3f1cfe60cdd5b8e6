"""Sweeps of the tiny job."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.common import files
from pipeline.experiments.sweeps.plan import ARGUMENTS
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


def write_sweep(folder: Path, **changes: Any) -> Path:
    """A sweep of the tiny job, whose runs live in FOLDER/runs; a change of None leaves a key out."""
    base = tiny.config(folder, "tracking.log_every_steps=1").model_dump(mode="json")
    files.write_json(folder / "base.yaml", base | {"run": {"root": str(folder / "runs"), "name": None}})
    tree = {key: value for key, value in (SWEEP | changes).items() if value is not None}
    tree["command"] = [str(folder / "base.yaml") if word == "BASE" else word for word in tree["command"]]
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path
