"""Checkpoint files: tensors and plain types only, read with `weights_only=True`."""

import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.common import files
from pipeline.common.errors import CheckpointError
from pipeline.models.pretrained import DAMAGE

FORMAT = 2


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    with files.replacing(path) as part:
        torch.save(content, part)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or of another program.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; run `make train` with this configuration first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise CheckpointError(
            f"{path}: damaged, or no checkpoint ({type(error).__name__}); take another one of this run"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a training checkpoint of this program; for pretrained weights use model.weights=PATH"
        )
    return content


def keep_last(folder: Path, step: int, count: int) -> None:
    """Keep `last.pt` under its step's name too, and of those the last `count`; with one, `last.pt` alone."""
    if count > 1:
        name = folder / f"step-{step:07}.pt"
        with files.replacing(name) as part:
            shutil.copyfile(folder / "last.pt", part)
    for old in sorted(folder.glob("step-*.pt"))[: -count if count > 1 else None]:
        old.unlink()


def check_data(content: dict[str, Any], path: Path, classes: list[str], samples: str) -> None:
    """Raise a `CheckpointError` unless a checkpoint was trained on these classes and these splits."""
    if len(content["classes"]) != len(classes):
        raise CheckpointError(
            f"{path}: was trained on {len(content['classes'])} classes and the data has {len(classes)}; "
            "give the data it was trained on, or another run.name"
        )
    if content["classes"] != classes or content["samples"] != samples:
        raise CheckpointError(
            f"{path}: was trained on another sample table (other classes, images, seed or validation split); "
            "give the configuration it was trained with, or another run.name"
        )
