"""W&B is talked to by a process of its own: `python -m pipeline sync`. Here it is started, and waited for a while.

So training neither imports the client nor waits for a server, and a server that is down costs one warning.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

from pipeline.common import console
from pipeline.config.schema import Config
from pipeline.runs import status
from pipeline.runs.log import LogRecord

STOPPED_WAIT_S = 15.0  # a cluster that has sent a signal kills soon
SAID_AFTER_S = 3.0
How = Literal["follow", "offline", "now"]


class OnlineSender:
    """The tracker of `tracking.wandb: online`: a process that reads the log while it is written, and sends it."""

    def __init__(self, config: Config) -> None:
        self._config, self._warned = config, False
        self._child = SyncProcess(config, "follow")

    def log(self, _record: LogRecord) -> None:
        """The record is in the log already; say so when nobody reads it any more."""
        if not self._warned and self._child.ended():
            self._child.wait(0)
            self._warned = True

    def close(self) -> None:
        """Give W&B some time to take the rest."""
        if not self._warned:
            self._child.wait(_wait_s(self._config))


class OfflineWriter:
    """The tracker of `tracking.wandb: offline`: the W&B folder is written from the log when the run ends."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def log(self, _record: LogRecord) -> None:
        """The record is in the log already."""

    def close(self) -> None:
        """Write the folder."""
        SyncProcess(self._config, "offline").wait(_wait_s(self._config))


def publish(config: Config) -> None:
    """Bring the W&B run, or its offline folder, up to what the run directory holds, as `tracking.wandb` has it."""
    if config.tracking.wandb != "disabled":
        how: How = "now" if config.tracking.wandb == "online" else "offline"
        SyncProcess(config, how).wait(config.tracking.upload_wait_s)


class SyncProcess:
    """A process that sends a run; it is in a session of its own, so that it outlives the signals of a terminal."""

    def __init__(self, config: Config, how: How) -> None:
        self._run_dir, self._how = config.run_dir, how
        self._log = config.run_dir / "wandb" / "sync.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        own = config.tracking.model_dump(mode="json").items()
        words = [str(config.run_dir), *(f"tracking.{key}={json.dumps(value)}" for key, value in own)]
        options = {"follow": ["--follow", str(os.getpid())], "offline": ["--offline"], "now": []}[how]
        command = [sys.executable, "-m", "pipeline", "sync", *options, *words]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def wait(self, seconds: float) -> None:
        """Wait for the end, at most so long; warn when the run is not sent then."""
        verb = "sync --offline" if self._how == "offline" else "sync"
        again = f"nothing is lost, `python -m pipeline {verb} {self._run_dir}` completes it"
        try:
            code = self._wait(seconds)
        except subprocess.TimeoutExpired:
            console.warn(f"W&B: not everything was sent in {seconds:g} s; {again}")
        else:
            if code:
                unknown = f"W&B: sending ended with code {code}, see {self._log}; {again}"
                console.warn(_last_error(self._log) or unknown)
        finally:
            if not self.ended():
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def _wait(self, seconds: float) -> int:
        try:
            return self._process.wait(min(seconds, SAID_AFTER_S))
        except subprocess.TimeoutExpired:
            if seconds <= SAID_AFTER_S:
                raise
        console.say(f"W&B    takes the rest of {self._run_dir}; at most {seconds:g} s")
        return self._process.wait(seconds - SAID_AFTER_S)


def _wait_s(config: Config) -> float:
    found = status.read(config.run_dir)
    stopped = found is not None and found.state == "stopped"
    return min(config.tracking.upload_wait_s, STOPPED_WAIT_S) if stopped else config.tracking.upload_wait_s


def _last_error(log: Path) -> str:
    """The sentence that the process ended with."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else ""
