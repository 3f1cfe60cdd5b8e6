"""Files that one process holds at a time: the system takes a lock back when its process ends, however it ends.

flock(2) reaches the processes of one machine, its containers, and on NFS those of other machines. A file system
without locks gives them to everyone.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

from pipeline.common import console
from pipeline.common.errors import UserError

FIRST_POLL_S, POLL_S = 0.01, 0.2  # between two attempts: doubled up to the second
QUIET_S = 5.0  # a longer wait is said
PATIENCE_S = 7200.0
TRIES = 20  # for a file whose folder is moved in between


class Lock:
    """A file that this process holds until it closes it, or ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    def free(cls, path: Path) -> "Lock | None":
        """Hold a file, which is made if it is missing, or None while another process holds it."""
        for left in reversed(range(TRIES)):
            stream = _open(path)
            if not _taken(stream, fcntl.LOCK_EX):
                stream.close()
                return None
            if left and not _is_at(stream, path):
                stream.close()
                continue
            break
        return cls(stream)

    @classmethod
    def hold(cls, path: Path) -> "Lock":
        """Hold a file once no other process does; a wait is announced, and has a limit.

        Raises:
            UserError: another process held it for `PATIENCE_S`.
        """
        if (lock := cls.wait(path, QUIET_S)) is None:
            console.say(
                f"waiting for another process, which holds {path}; at most {PATIENCE_S / 3600:g} hours"
            )
            lock = cls.wait(path, PATIENCE_S)
        if lock is None:
            raise UserError(
                f"{path}: another process has held it for {PATIENCE_S / 3600:g} hours; check what it is doing (it "
                "may be suspended), and run again"
            )
        return lock

    @classmethod
    def wait(cls, path: Path, at_most_s: float) -> "Lock | None":
        """Hold a file as soon as no other process does; None when that takes too long."""
        deadline, pause_s = time.monotonic() + at_most_s, FIRST_POLL_S
        while (lock := cls.free(path)) is None and time.monotonic() < deadline:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_S)
        return lock

    def close(self) -> None:
        """Let go."""
        self._stream.close()


def held(path: Path) -> bool:
    """Whether a living process holds a file."""
    try:
        stream = path.open(encoding="utf-8")
    except OSError:  # gone, or not ours to open
        return False
    with stream:
        return not _taken(stream, fcntl.LOCK_SH)


def _open(path: Path) -> TextIO:
    for _ in range(TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the folder has been moved in between
            return path.open("a", encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _is_at(stream: TextIO, path: Path) -> bool:
    """Whether an open file is still the one at a path: its holder may have moved its folder before it let go."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _taken(stream: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
