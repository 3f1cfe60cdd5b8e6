"""Whether a run is running, and how it ended: a status file, and a lock that the system frees with the process."""

import contextlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pipeline.common import console, files, locks
from pipeline.common.errors import CheckpointError, DataError, Stopped, refused

State = Literal["running", "finished", "stopped", "failed", "killed"]
READERS_WAIT_S = 1.0  # whoever reads a status holds the lock for a moment
OTHER_HOST_WAIT_S = 120.0  # a file server frees the lock of a dead machine only when its lease ends


@dataclass(frozen=True)
class Status:
    """How a run stood when it was read.

    state: stopped: by a signal, the same command continues the run; failed: the loss diverged, or a bug; killed:
    the file says running, but the process is gone. why: the sentence of a stop or a failure, or "".
    attempts: processes so far. started: when the first attempt began; updated: the last change; both UTC, ISO 8601.
    """

    state: State
    why: str
    host: str
    pid: int
    attempts: int
    started: str
    updated: str


def read(path: Path) -> Status | None:
    """The status in `status.json`; None where there is no such file.

    Raises:
        DataError: the file is not JSON.
    """
    if not path.is_file():
        return None
    status = _stored(path)
    if status.state == "running" and not locks.held(_lock_of(path)):
        return replace(status, state="killed")
    return status


class Hold:
    """The hold of this process on a run: only its holder reads it to go on from, writes to it, or moves it."""

    def __init__(self, path: Path) -> None:
        """Hold a run, before anything of it is read.

        Args:
            path: the run's `status.json`.

        Raises:
            CheckpointError: another process is training the run.
        """
        self._path = path
        self._new_folders = [folder for folder in path.parents if not folder.exists()]
        self._lock = _take(path)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Mark the run as running while the block runs, and write down how it ended."""
        path = self._path
        _begin(path)
        try:
            yield
        except (Stopped, KeyboardInterrupt) as stop:
            _note_end(path, "stopped", str(stop) or "stopped by SIGINT")
            raise
        except BaseException as error:
            _note_end(path, "failed", str(refused(error) or error) or type(error).__name__)
            raise
        _change(path, "finished", "")

    def move_run(self, to: Path) -> None:
        """Rename the run's folder, and hold an empty one in its place.

        Raises:
            CheckpointError: another process was faster to begin a run there.
        """
        moved = self._lock
        self._path.parent.rename(to)
        self._new_folders, self._lock = [self._path.parent], _take(self._path)
        moved.close()

    def close(self) -> None:
        """Let go; of a training that has not begun nothing is left behind."""
        if not self._path.is_file():
            _lock_of(self._path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # they hold other files, or another process begins a run here
                for folder in self._new_folders:
                    folder.rmdir()
        self._lock.close()


@contextmanager
def running(path: Path) -> Iterator[None]:
    """Hold a run and mark it as running while the block runs.

    Args:
        path: the run's `status.json`.

    Raises:
        CheckpointError: another process is training the run.
    """
    with contextlib.closing(Hold(path)) as hold, hold.running():
        yield


def _begin(path: Path) -> None:
    before, now = read(path), _now()
    status = Status(
        state="running",
        why="",
        host=platform.node(),
        pid=os.getpid(),
        attempts=before.attempts + 1 if before else 1,
        started=before.started if before else now,
        updated=now,
    )
    files.write_json(path, asdict(status))


def _note_end(path: Path, state: State, why: str) -> None:
    """Write down how a run ended, also on a full disk; an error of this never hides the one that ended the run."""
    try:
        changed = replace(_stored(path), state=state, why=why, updated=_now())
        try:
            files.write_json(path, asdict(changed))
        except OSError:  # on a full disk there may be room where the file is
            files.overwrite_json(path, asdict(changed))
    except (OSError, DataError) as error:
        console.warn(f"the status of the run stays as it was: {refused(error) or error}")


def _change(path: Path, state: State, why: str) -> None:
    files.write_json(path, asdict(replace(_stored(path), state=state, why=why, updated=_now())))


def _stored(path: Path) -> Status:
    return files.read_json(path, Status)


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _take(path: Path) -> locks.Lock:
    """Hold the run for this process, the one that may write to it."""
    run_dir, lock_file = path.parent, _lock_of(path)
    if (lock := locks.Lock.wait(lock_file, READERS_WAIT_S)) is not None:
        return lock
    owner = _stored(path) if path.is_file() else None
    process = f"process {owner.pid} on {owner.host}" if owner else "another process"
    if owner is not None and owner.host != platform.node():
        console.say(f"wait   {process} holds {run_dir}; at most {OTHER_HOST_WAIT_S:.0f} s")
        if (lock := locks.Lock.wait(lock_file, OTHER_HOST_WAIT_S)) is not None:
            return lock
    raise CheckpointError(
        f"{run_dir}: {process} is training this run; wait for its end, stop it, or take another run.name"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
