"""Whether a run is running, and how it ended: status.json, and a lock that the system drops with the process."""

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pipeline import files, terminal
from pipeline.errors import CheckpointError, Stopped

State = Literal["running", "finished", "stopped", "failed", "killed"]
NAME, LOCK = "status.json", "status.lock"
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
    return replace(status, state="killed") if status.state == "running" and not _held(run_dir) else status


@contextmanager
def running(run_dir: Path) -> Iterator[None]:
    """Say that a run is running while the block runs, and how it ended.

    Raises:
        CheckpointError: another process is training it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(lock, run_dir)
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
        os.close(lock)  # which drops the lock


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


def _take(lock: int, run_dir: Path) -> None:
    """Lock the run for this process, the one that may write to it."""
    owner = Status(**files.read_json(run_dir / NAME)) if (run_dir / NAME).is_file() else None
    elsewhere = owner is not None and owner.host != platform.node()
    deadline = time.monotonic() + (OTHER_HOST_WAIT_S if elsewhere else 0)
    told = False
    while not _locked(lock, fcntl.LOCK_EX):
        who = f"process {owner.pid} on {owner.host}" if owner else "another process"
        if time.monotonic() >= deadline:
            raise CheckpointError(
                f"{run_dir}: {who} is training this run; wait for its end, stop it, or take another run.name"
            )
        if not told:
            terminal.say(f"wait   {who} holds {run_dir}; at most {OTHER_HOST_WAIT_S:.0f} s")
            told = True
        time.sleep(1)


def _held(run_dir: Path) -> bool:
    """Whether a living process holds the lock of a run."""
    try:
        lock = os.open(run_dir / LOCK, os.O_RDWR)
    except OSError:  # gone, or not ours to open
        return False
    try:
        return not _locked(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _locked(lock: int, kind: int) -> bool:
    """Take a lock unless another process has it; a file system without locks gives it to everyone."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
