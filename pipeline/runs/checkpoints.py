"""Checkpoint files: tensors and plain types only, read with `weights_only=True`."""

from pathlib import Path
from typing import Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from torch import Tensor

from pipeline.common import files
from pipeline.common.errors import CheckpointError
from pipeline.models.precision import Precision
from pipeline.models.pretrained import DAMAGE, load_checked

FORMAT = 2
ANOTHER = "take another one of this run: train.resume=PATH, or eval.checkpoint=best or last"


class _Model(BaseModel):
    name: str


class _Configuration(BaseModel):
    model: _Model


class _Optimizer(BaseModel):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class _Content(BaseModel):
    """What every reader of a checkpoint takes for granted; `part` checks what only a resume reads."""

    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True)

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: _Optimizer
    scaler: dict[str, Any]
    epoch: NonNegativeInt
    step: NonNegativeInt
    config: _Configuration
    classes: list[str]
    samples: str
    precision: Precision
    batch_size: PositiveInt
    weights: dict[str, Any]
    best: dict[str, Any] | None


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, complete or not at all."""
    with files.replacing(path) as part, part.open("wb") as stream:  # torch names a file within by the path
        torch.save(content, stream)


def link(source: Path, path: Path) -> None:
    """Give a checkpoint a second name, in place of what was there. A later `save` under one of them leaves the other."""
    with files.replacing(path) as part:
        files.link_or_copy(source, part)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or of another program.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint; run `plumage train` with the same --config and keys first"
        )
    with path.open("rb") as stream:  # a file that may not be read is no damaged one
        try:
            content = load_checked(stream)
        except DAMAGE as error:  # among them OSError: torch seeks where a truncated file has nothing
            raise CheckpointError(f"{path}: damaged (cut short?), or not a checkpoint; {ANOTHER}") from error
    if not isinstance(content, dict) or repr(content.get("format")) != repr(FORMAT):
        raise CheckpointError(
            f"{path}: not a training checkpoint of this program; for pretrained weights use model.weights=PATH"
        )
    _checked(_Content, content, "", path)
    return content


def part(content: dict[str, Any], name: str, kind: Any, path: Path) -> Any:
    """A part of a checkpoint's content as a type, such as the dataclass that it was made from.

    Raises:
        CheckpointError: the part is missing, or of another type.
    """
    return _checked(kind, content.get(name), f"{name}.", path)


def _checked(kind: Any, value: Any, prefix: str, path: Path) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise CheckpointError(f"{path}: damaged ({prefix}{files.first_fault(error)}); {ANOTHER}") from error


def keep_last(last: Path, step: int, count: int) -> None:
    """Give the last checkpoint the name step-STEP.pt too, and delete the oldest of these.

    Args:
        count: how many stay; with 1 there is none, only `last`.
    """
    if count > 1:
        link(last, last.with_name(f"step-{step:07}.pt"))
    for old in sorted(last.parent.glob("step-*.pt"))[: -count if count > 1 else None]:
        old.unlink()


def check_data(content: dict[str, Any], path: Path, classes: list[str], samples: str) -> None:
    """Raise a `CheckpointError` unless a checkpoint was trained on these classes and this sample table.

    Args:
        content: of the checkpoint.
        samples: digest of the sample table.
    """
    if len(content["classes"]) != len(classes):
        raise CheckpointError(
            f"{path}: was trained on {len(content['classes'])} classes and the data has {len(classes)}; "
            "give the data it was trained on, or another run.name"
        )
    if content["classes"] != classes or content["samples"] != samples:
        raise CheckpointError(
            f"{path}: was trained on another sample table (other classes, labels, images, seed or validation split, or "
            "the pictures of data.path have changed since, and `plumage data` kept the earlier table beside the new "
            "one); give the configuration and pictures it was trained with, or another run.name"
        )
