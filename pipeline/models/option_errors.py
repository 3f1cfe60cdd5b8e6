"""What timm and torch raise for a user's options becomes one sentence that names the keys.

They check little: options that do not fit end in whatever their code stumbles over.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.common import hardware
from pipeline.common.errors import ConfigError
from pipeline.config.schema import Config
from pipeline.distributed.process_group import is_collective_error

RAISED = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
QUOTED_AT_MOST = 300  # characters of a message


@contextmanager
def option_errors(where: str, advice: str) -> Iterator[None]:
    """Raise a `ConfigError` for what a block raises: `WHERE (AssertionError: MESSAGE); ADVICE`.

    For calls of timm and torch with a user's options alone: a bug of ours would look like a wrong configuration.
    Errors of memory, of the device and of other ranks stay what they are.
    """
    try:
        yield
    except RAISED as error:
        if is_collective_error(error) or hardware.is_out_of_memory(error) or _is_of_device(error):
            raise
        raise ConfigError(f"{where} ({quoted(error)}); {advice}") from error


@contextmanager
def memory_errors(what: str, advice: str) -> Iterator[None]:
    """Raise a `ConfigError` where memory does not suffice for a block: `WHAT (OutOfMemoryError: MESSAGE); ADVICE`."""
    try:
        yield
    except Exception as error:
        if not hardware.is_out_of_memory(error):
            raise
        raise ConfigError(f"{what} ({quoted(error)}); {advice}") from error


def where_size_matters(config: Config, backbone: nn.Module, side_px: int) -> tuple[str, str]:
    """The words of `option_errors` for a pass through a model: where it fails, and what to do then.

    Args:
        side_px: of the images: that of data.image_px, or of a stage of data.progressive.
    """
    key = "data.image_px" if side_px == config.data.image_px else "image_px of data.progressive"
    *_, own_px = getattr(backbone, "pretrained_cfg", {}).get("input_size") or (side_px,)
    other = f"set {key} to its own {own_px}, or " if own_px != side_px else ""
    return (
        f"model.name={config.model.name}: cannot compute images of {key}={side_px}",
        f"{other}try model.options={{img_size: {side_px}}}, which fixed-size models accept, or another model",
    )


def quoted(error: BaseException) -> str:
    """`KeyError: 'step'`, in one line, of limited length."""
    message = " ".join(str(error).split())
    shown = message if len(message) <= QUOTED_AT_MOST else f"{message[:QUOTED_AT_MOST]} ..."
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def _is_of_device(error: Exception) -> bool:
    return isinstance(error, getattr(torch, "AcceleratorError", ()))
