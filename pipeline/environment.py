"""What a run ran on: written beside its results, so that a number can be traced to its making."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "plumage",
    "torch",
    "torchvision",
    "timm",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "pandas",
    "pillow",
    "scikit-learn",
    "tensorboard",
    "optuna",
    "wandb",
)


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, packages, git commit and command, as plain types."""
    on_gpu = device.type == "cuda"
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git(),
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device)
        if on_gpu
        else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if on_gpu else None,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None  # run from a checkout that was not installed


def _git() -> dict[str, Any] | None:
    """The commit of the code and whether files differ from it; None outside a git checkout."""
    folder = Path(__file__).parent

    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
