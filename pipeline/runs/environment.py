"""Machine, packages, code and command of a run: written beside its results, so that they can be reproduced."""

import hashlib
import platform
import subprocess
import sys
from collections.abc import Mapping
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
COMPUTING = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy")
DIFF_BYTES = 1 << 20
CODE = Path(__file__).parent.parent
ROOMS_OF_NUMBERS = (
    *("common", "config", "distributed", "data", "models", "runs", "inference", "training", "evaluation"),
)
"""the rooms whose code makes the numbers of a run"""
GIT_WAIT_S = 30.0  # on a disk that does not answer, git does not either


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, packages, git commit and command, as plain types."""
    on_gpu = device.type == "cuda"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": git(),
        "code_sha256": code_sha256(),
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": hardware.cores(),
        **computed_on(device),
        "driver": nvidia.driver() if on_gpu else None,
        "tf32": torch.backends.cuda.matmul.allow_tf32 if on_gpu else None,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def computed_on(device: torch.device) -> dict[str, Any]:
    """What of `describe` may change the bits of a training, but for the code."""
    on_gpu = device.type == "cuda"
    return {
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device)
        if on_gpu
        else platform.processor() or platform.machine(),
        "cpu": _cpu(),
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,  # type: ignore[no-untyped-call]
        "packages": {name: _version(name) for name in COMPUTING},
    }


def other_bits(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Why an environment does not promise the bits of another one: what differs of code, processor, device and packages.

    Of an environment that does not name its processor, the host has to be the same; one of an earlier version does not
    name cuDNN.
    """
    in_both = recorded.keys() & here.keys()
    keys = ["device", "cuda", *["cudnn"] * ("cudnn" in in_both), "cpu" if "cpu" in in_both else "host"]
    packages, packages_here = (about.get("packages", {}) for about in (recorded, here))
    differing = ["code"] if recorded.get("code_sha256") != here.get("code_sha256") else []
    differing += [key for key in keys if recorded.get(key) != here.get(key)]
    return differing + [name for name in COMPUTING if packages.get(name) != packages_here.get(name)]


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


def code_sha256() -> str:
    """The SHA-256 of the code that makes numbers (`ROOMS_OF_NUMBERS`): names and contents of its files.

    It is the same for two commits that differ elsewhere, and needs no git.
    """
    digest = hashlib.sha256()
    for room in ROOMS_OF_NUMBERS:
        for path in sorted((CODE / room).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(CODE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _cpu() -> str:
    """The processor's name, and the instructions that torch takes: bits depend on both."""
    info, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.is_file():
        lines = info.read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def git() -> dict[str, Any] | None:
    """The commit of the code, and whether its files differ from it or new ones are among them; None without git."""
    try:
        changed = _run_git("status", "--porcelain", "--untracked-files=no")
        new = _run_git(
            "ls-files", "--others", "--exclude-standard", str(CODE)
        )  # pictures beside it are no code
        return {"commit": _run_git("rev-parse", "HEAD"), "dirty": bool(changed or new)}
    except (OSError, subprocess.SubprocessError):
        return None


def _run_git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=GIT_WAIT_S
    )
    return done.stdout.strip()
