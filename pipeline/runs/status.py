"""Whether a run is running, and how it ended: status.json, and a lock that the system drops with the process."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pipeline.common import console, files, locks
from pipeline.common.errors import CheckpointError, Stopped

State = Literal["running", "finished", "stopped", "failed", "killed"]
NAME, LOCK = "status.json", "status.lock"
LOOK_S = 1.0  # whoever reads a status holds the lock for a moment
OTHER_HOST_WAIT_S = 120.0  # a file server gives the lock of a machine that died free after its lease


@dataclass(frozen=True)
class Status:
    """state: stopped, by a signal: the same command goes on; failed: diverged, or a bug; killed: says running, is not.

    started, updated: UTC, ISO 8601; of the first attempt, and of the last change. attempts: processes so far.
    why: the sentence of a stop or a failure, or "".
    """

    state: State
    why: str
    host: str
    pid: int
    attempts: int
    started: str
    updated: str


def read(run_dir: Path) -> Status | None:
    """The status of a run; None where no training has begun.

    Raises:
        DataError: status.json is not JSON.
    """
    path = run_dir / NAME
    if not path.is_file():
        return None
    status = Status(**files.read_json(path))
    return (
        replace(status, state="killed")
        if status.state == "running" and not locks.held(run_dir / LOCK)
        else status
    )


@contextmanager
def running(run_dir: Path) -> Iterator[None]:
    """Say that a run is running while the block runs, and how it ended.

    Raises:
        CheckpointError: another process is training it.
    """
    lock = _take(run_dir)
    try:
        _begin(run_dir)
        try:
            yield
        except (Stopped, KeyboardInterrupt) as stop:
            _change(run_dir, "stopped", str(stop) or "stopped by SIGINT")
            raise
        except BaseException as error:
            _change(run_dir, "failed", str(error) or type(error).__name__)
            raise
        _change(run_dir, "finished", "")
    finally:
        lock.close()


def _begin(run_dir: Path) -> None:
    before = read(run_dir)
    files.write_json(
        run_dir / NAME,
        asdict(
            Status(
                state="running",
                why="",
                host=platform.node(),
                pid=os.getpid(),
                attempts=before.attempts + 1 if before else 1,
                started=before.started if before else _now(),
                updated=_now(),
            )
        ),
    )


def _change(run_dir: Path, state: State, why: str) -> None:
    status = Status(**files.read_json(run_dir / NAME))
    files.write_json(run_dir / NAME, asdict(replace(status, state=state, why=why, updated=_now())))


def _take(run_dir: Path) -> locks.Lock:
    """Hold the run for this process, the one that may write to it."""
    path = run_dir / LOCK
    if (lock := locks.Lock.wait(path, LOOK_S)) is not None:
        return lock
    owner = Status(**files.read_json(run_dir / NAME)) if (run_dir / NAME).is_file() else None
    who = f"process {owner.pid} on {owner.host}" if owner else "another process"
    if owner is not None and owner.host != platform.node():
        console.say(f"wait   {who} holds {run_dir}; at most {OTHER_HOST_WAIT_S:.0f} s")
        if (lock := locks.Lock.wait(path, OTHER_HOST_WAIT_S)) is not None:
            return lock
    raise CheckpointError(
        f"{run_dir}: {who} is training this run; wait for its end, stop it, or take another run.name"
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
