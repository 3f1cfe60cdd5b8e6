"""The errors a user can cause, each with its exit code.

The message of a `UserError` is one sentence: where, what, and what to do next. The command
line prints it without a traceback. Every other exception is a bug and keeps its traceback.
"""

from collections.abc import Collection
from typing import Any

NAMED_AT_MOST = 5


class UserError(Exception):
    """Something the user can mend."""

    exit_code = 2
    said = False
    """whether another rank has ended the job before, and said why"""


class ConfigError(UserError):
    """A configuration file or an override is wrong."""


class DataError(UserError):
    """An archive, a folder, a picture or a table is missing or wrong."""


class WeightsError(UserError):
    """Pretrained weights are missing, or do not fit the model."""


class CheckpointError(UserError):
    """A checkpoint is missing, or does not belong to this run."""


class Diverged(UserError):
    """The training loss is no longer a finite number."""


class Stopped(Exception):
    """A signal asked the program to stop; the same command goes on from where it was."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class RankLost(Stopped):
    """Another rank of the job is gone; what is saved is whole, and the same command goes on from there."""

    def __init__(self, why: str, said: bool) -> None:
        """said: whether another rank of this machine says it too."""
        super().__init__(why)
        self.said = said


def name_some(values: Collection[Any]) -> str:
    """`17, 23 (2 in all)`, with the first five where there are more."""
    named = [str(value) for value in list(values)[:NAMED_AT_MOST]]
    more = ", ..." if len(values) > NAMED_AT_MOST else ""
    return f"{', '.join(named)}{more} ({len(values):,} in all)"
