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

POLL_S = 0.2


class Lock:
    """A file that this process holds until it closes it, or ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    def free(cls, path: Path) -> "Lock | None":
        """Hold a file, which is made if it is missing, or None while another process holds it."""
        while True:
            stream = _open(path)
            if not _taken(stream, fcntl.LOCK_EX):
                stream.close()
                return None
            if _is_at(stream, path):
                return cls(stream)
            stream.close()

    @classmethod
    def hold(cls, path: Path) -> "Lock":
        """Hold a file once no other process does, however long that takes."""
        while True:
            stream = _open(path)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            if _is_at(stream, path):
                return cls(stream)
            stream.close()

    @classmethod
    def wait(cls, path: Path, at_most_s: float) -> "Lock | None":
        """Hold a file as soon as no other process does; None when that takes too long."""
        deadline = time.monotonic() + at_most_s
        while (lock := cls.free(path)) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
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
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the folder has been moved in between
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
