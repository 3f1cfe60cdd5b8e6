"""Machine, packages, code and command of a run: written beside its results, so that they can be reproduced."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pipeline.common import hardware, nvidia

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
GIT_WAIT_S = 30.0  # on a disk that does not answer, git does not either


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, packages, git commit and command, as plain types."""
    on_gpu = device.type == "cuda"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git(),
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": hardware.cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device)
        if on_gpu
        else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if on_gpu else None,
        "driver": nvidia.driver() if on_gpu else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32 if on_gpu else None,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def diff() -> str | None:
    """The changes of the code since its commit, as `git diff` shows them; None without any, or without git.

    The text is cut after `DIFF_BYTES`. Files that git does not track are not in it.
    """
    try:
        text = _run_git("diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
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
        return {"commit": _run_git("rev-parse", "HEAD"), "dirty": bool(_run_git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _run_git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=GIT_WAIT_S
    )
    return done.stdout.strip()
