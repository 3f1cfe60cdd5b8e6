"""The errors a user can cause, each with its exit code.

The message of a `UserError` is one sentence: where, what, and what to do next. The command
line prints it without a traceback. Every other exception is a bug and keeps its traceback.
"""

import errno
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

NAMED_AT_MOST = 5
RUN_DATA = "run `plumage data` with the same --config and keys"
"""what to do next where prepared data are missing or no longer whole"""


class UserError(Exception):
    """Something the user can fix."""

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


class ExportError(UserError):
    """What would be exported does not answer as the trained model does."""


class FileRefused(UserError):
    """The system refuses to write or read a file: the disk is full, read-only, not permitted, ..."""


class Stopped(Exception):
    """A signal asked the program to stop; the same command resumes from where it was."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class RankLost(Stopped):
    """Another rank of the job is gone; what is saved is whole, and the same command resumes from there."""

    def __init__(self, why: str, said: bool) -> None:
        """said: whether another rank of this machine says it too."""
        super().__init__(why)
        self.said = said


AGAIN = "then the same command resumes"
ANOTHER_FOLDER = "give another one (run.root for results, data.root for data)"
# What the user can fix, by the system's number of the error. Others, such as ENOENT, are bugs.
REFUSALS = {
    errno.ENOSPC: f"the disk is full; free some space, {AGAIN}",
    errno.EDQUOT: f"your quota of this disk is used up; free some space, {AGAIN}",
    errno.EFBIG: "this disk cannot store a file of this size; use another disk",
    errno.EROFS: f"the disk is read-only; {ANOTHER_FOLDER}",
    errno.EACCES: f"no permission to read or write it; ask its owner for it, or {ANOTHER_FOLDER}",
    errno.EPERM: f"the system does not permit this; ask the owner of the folder, or {ANOTHER_FOLDER}",
    errno.ENOTDIR: "a file stands where a folder is needed; give another path",
    errno.EEXIST: "a file stands where a folder is needed; give another path",
    errno.EISDIR: "is a folder where a file is needed; give another path",
    errno.ENAMETOOLONG: "the name is too long for this disk; use a shorter one",
    errno.ELOOP: "its symbolic links form a loop; fix them, or give another path",
    errno.ENXIO: "is not a regular file; give another path",
    errno.EIO: f"the disk failed to read or write it; check the disk, {AGAIN}",
    errno.ESTALE: f"the file server no longer knows it; mount the folder again, {AGAIN}",
    errno.EMFILE: f"too many files are open; raise the limit (`ulimit -n`), {AGAIN}",
    errno.ENFILE: f"too many files are open on this machine; end some programs, {AGAIN}",
    errno.ENOMEM: f"no memory is left; end some programs, {AGAIN}",
}


def refused(error: BaseException) -> FileRefused | None:
    """The sentence for an `OSError` that the user can fix; None for any other exception."""
    if not isinstance(error, OSError) or error.errno not in REFUSALS:
        return None
    return FileRefused(f"{error.filename or 'a file'}: {REFUSALS[error.errno]}")


@contextmanager
def refusals_as_sentences() -> Iterator[None]:
    """Raise `FileRefused` for each `OSError` of the block that the user can fix."""
    try:
        yield
    except OSError as error:
        if (sentence := refused(error)) is None:
            raise
        raise sentence from error


@contextmanager
def named(path: object) -> Iterator[None]:
    """Put this path into an `OSError` of the block that names none: of a stream, say, that is already open."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def close_after(close: Callable[[], None], warn: Callable[[str], None]) -> Iterator[None]:
    """Call `close` as the block ends; when the block has failed, an error of `close` is only a warning."""
    try:
        yield
    except BaseException as error:
        try:
            close()
        except Exception as second:
            if str(refused(second) or second) != str(refused(error) or error):  # else it is said already
                warn(f"while ending after that error: {refused(second) or repr(second)}")
        raise
    close()


def name_some(values: Collection[Any]) -> str:
    """`17, 23 (2 in all)`, with the first five where there are more."""
    named = [str(value) for value in list(values)[:NAMED_AT_MOST]]
    more = ", ..." if len(values) > NAMED_AT_MOST else ""
    return f"{', '.join(named)}{more} ({len(values):,} in all)"
