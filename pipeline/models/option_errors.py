"""What timm and torch raise for a user's options becomes one sentence that names the keys.

They check little: options that do not fit end in whatever their code stumbles over.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.common import hardware
from pipeline.common.errors import ConfigError
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


def quoted(error: BaseException) -> str:
    """`KeyError: 'step'`, in one line and not without end."""
    message = " ".join(str(error).split())
    shown = message if len(message) <= QUOTED_AT_MOST else f"{message[:QUOTED_AT_MOST]} ..."
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def _is_of_device(error: Exception) -> bool:
    return isinstance(error, getattr(torch, "AcceleratorError", ()))
