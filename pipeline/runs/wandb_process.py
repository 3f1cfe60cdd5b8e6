"""Starts the process that sends a run to W&B, `plumage sync`, and waits for its end, for a limited time.

So training neither imports the client nor waits for a server, and a server that is down costs one warning.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from pipeline.common import console
from pipeline.config.schema import Config
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import LogRecord

STOPPED_WAIT_S = 15.0  # a cluster that has sent a signal kills soon
SHOWN_AFTER_S = 3.0  # a shorter wait is not mentioned
Mode = Literal["follow", "offline", "now"]


class OnlineSender:
    """The tracker of `tracking.wandb: online`: its process reads the log while training writes it, and sends it."""

    def __init__(self, config: Config) -> None:
        self._config, self._warned = config, False
        self._child = SyncProcess(config, "follow")

    def log(self, _record: LogRecord) -> None:
        """Warn, once, when the sending process has ended; the record itself is in the log already."""
        if not self._warned and self._child.ended():
            self._child.wait(0)
            self._warned = True

    def close(self) -> None:
        """Wait until everything is sent, at most `tracking.upload_wait_s`."""
        if not self._warned:
            self._child.wait(_wait_s(self._config))


def _written(value: Any) -> str:
    """A value as YAML that any locale can pass on: JSON's escapes write an emoji as two halves, YAML's as one."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[^ -~]", lambda letter: f"\\U{ord(letter[0]):08x}", text)


class OfflineWriter:
    """The tracker of `tracking.wandb: offline`: writes the W&B folder from the log when the run ends."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def log(self, _record: LogRecord) -> None:
        """Do nothing: the record is in the log already."""

    def close(self) -> None:
        """Write the folder."""
        SyncProcess(self._config, "offline").wait(_wait_s(self._config))


def publish(config: Config) -> None:
    """Send to W&B, or write to its offline folder, what the run directory holds and W&B does not have yet."""
    if config.tracking.wandb != "disabled":
        mode: Mode = "now" if config.tracking.wandb == "online" else "offline"
        SyncProcess(config, mode).wait(config.tracking.upload_wait_s)


class SyncProcess:
    """A process that sends a run. It has its own session, so that signals of the terminal do not reach it."""

    def __init__(self, config: Config, mode: Mode) -> None:
        self._run_dir, self._mode = config.run_dir, mode
        self._log = RunDirectory(config.run_dir).wandb / "sync.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        tracking = config.tracking.model_dump(mode="json").items()
        overrides = [f"tracking.{key}={_written(value)}" for key, value in tracking]
        options = {"follow": ["--follow", str(os.getpid())], "offline": ["--offline"], "now": []}[mode]
        command = [sys.executable, "-m", "pipeline", "sync", *options, str(config.run_dir), *overrides]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def wait(self, seconds: float) -> None:
        """Wait for the end, at most `seconds`; warn, and kill the process, when the run is not sent then."""
        verb = "sync --offline" if self._mode == "offline" else "sync"
        again = f"nothing is lost, `plumage {verb} {self._run_dir}` completes it"
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
            return self._process.wait(min(seconds, SHOWN_AFTER_S))
        except subprocess.TimeoutExpired:
            if seconds <= SHOWN_AFTER_S:
                raise
        console.say(f"W&B    takes the rest of {self._run_dir}; at most {seconds:g} s")
        return self._process.wait(seconds - SHOWN_AFTER_S)


def _wait_s(config: Config) -> float:
    status = RunDirectory(config.run_dir).read_status()
    wait_s = config.tracking.upload_wait_s
    return min(wait_s, STOPPED_WAIT_S) if status is not None and status.state == "stopped" else wait_s


def _last_error(log: Path) -> str:
    """The last error in the output of the process, without `error: `; empty without one."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else ""
