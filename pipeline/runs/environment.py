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


DIFF_BYTES = 1 << 20


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


def diff() -> str | None:
    """How the code differs from its commit, as `git diff` has it; None where it does not, or git does not say.

    It is cut after `DIFF_BYTES`. Files that git does not know are not in it.
    """
    try:
        text = _ask("diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None
    cut = text.encode()[:DIFF_BYTES].decode(errors="ignore")
    return (cut if cut == text else f"{cut}\n[cut after {DIFF_BYTES} bytes]") + "\n" if text else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None  # run from a checkout that was not installed


def _git() -> dict[str, Any] | None:
    """The commit of the code and whether files differ from it; None outside a git checkout."""
    try:
        return {"commit": _ask("rev-parse", "HEAD"), "dirty": bool(_ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _ask(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
    return done.stdout.strip()
