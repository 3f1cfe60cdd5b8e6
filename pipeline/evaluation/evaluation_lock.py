"""One process at a time writes the evaluation of a split: its files belong to each other."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.common.errors import DataError
from pipeline.common.locks import Lock
from pipeline.runs.directory import EvaluationDirectory

WAIT_S = 2.0


@contextmanager
def held(folder: EvaluationDirectory) -> Iterator[None]:
    """Keep other processes away from an evaluation while the block runs.

    The lock is a file of the run's folder, so that one that cannot be written is known before a split is read.

    Raises:
        DataError: the folder cannot be written, or another process evaluates this split.
    """
    path = folder.path.with_name(f"{folder.split}.lock")
    try:
        lock = Lock.wait(path, WAIT_S)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise DataError(
            f"{error.filename}: cannot be written ({error.strerror}), and the results of an evaluation go there, as "
            "the list of readings of test goes into the run's folder; copy the run to a folder of your own, and name "
            "that with run.root"
        ) from error
    if lock is None:
        raise DataError(
            f"{folder.path}: another process evaluates this split or writes its report; wait until it is done"
        )
    try:
        yield
    finally:
        lock.close()
