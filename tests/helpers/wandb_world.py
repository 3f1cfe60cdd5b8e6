"""A run of the tiny job, and the stand-in for W&B's server that it is sent to."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.log import LogRecord, read_log
from tests.helpers import tiny
from tests.helpers.wandb_server import WandbRun, WandbServer

QUICK = {
    "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",  # less is taken for the default of 15 s
    "WANDB__FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "0.1",
    "WANDB__FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "0.3",
    "WANDB__GRAPHQL_RETRY_WAIT_MIN_SECONDS": "0.1",
    "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": "0.3",
    "WANDB__STATS_SAMPLING_INTERVAL": "0.1",
}
ONLINE = ("tracking.wandb=online", "tracking.log_every_steps=1")
LAST = 15  # 3 epochs of 5 steps


@dataclass
class World:
    """A server, and a folder whose one run is `tiny`."""

    tmp: Path
    server: WandbServer

    @property
    def run_dir(self) -> Path:
        return self.tmp / "runs/tiny"

    @property
    def environment(self) -> dict[str, str]:
        return {**self.server.environment, **QUICK}

    def sync(self, *options: str, **more: str) -> dict[str, Any]:
        """The verb in a process of its own; its result for the one run."""
        command = [sys.executable, "-m", "pipeline", "sync", *options, str(self.run_dir)]
        done = tiny.launch(command, env={**os.environ, **self.environment, **more})
        assert done.returncode == 0, done.stderr
        (result,) = json.loads(done.stdout)["runs"]
        return result

    def wandb_sync(self) -> None:
        """W&B's own command on the one offline folder."""
        (folder,) = (self.run_dir / "wandb").glob("offline-run-*")
        done = tiny.launch(
            [str(Path(sys.executable).with_name("wandb")), "sync", str(folder)],
            env={**os.environ, **self.environment},
            cwd=self.tmp,  # it leaves a folder where it is called
        )
        assert done.returncode == 0, done.stderr

    def overrides(self, *more: str) -> list[str]:
        return tiny.overrides(self.tmp, *more)


def expected_rows(run_dir: Path) -> dict[int, dict[str, Any]]:
    """The rows that the log asks for, computed independently of the code that sends them."""
    rows: dict[int, dict[str, Any]] = {}
    for record in read_log(run_dir / "log.jsonl"):
        row = rows.setdefault(record["step"], {})
        if record["kind"] == "gradients":
            for name, histogram in record["histograms"].items():
                row[f"gradients/{name}"] = [histogram["counts"], histogram["edges"]]
        else:
            kept = {name: value for name, value in record.items() if value is not None}
            row |= {f"{record['kind']}/{name}": kept[name] for name in kept.keys() - {"kind", "step", "time"}}
    return rows


def sent_rows(run: WandbRun) -> dict[int, dict[str, Any]]:
    """The rows of a run as its server has them; fails when a step occurs twice or out of order."""
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps))
    rows = {}
    for row in run.history:
        named = {key: value for key, value in row.items() if not key.startswith("_")}
        rows[row["_step"]] = {
            key: [value["values"], value["bins"]] if isinstance(value, dict) else value
            for key, value in named.items()
        }
    return rows


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)


def living_commands(text: str) -> list[str]:
    """The command lines of living processes that contain a text."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in lines if text in line]


class Outage:
    """Stops the server in mid-run, when it has some rows, and starts it again before the end."""

    def __init__(self, server: WandbServer) -> None:
        self._server = server

    def log(self, record: LogRecord) -> None:
        if (record["kind"], record["step"]) == ("step", 5):  # whose row has an epoch's record to come
            wait_until(lambda: self._server.runs and len(self._server.only_run().history) >= 2)
            self._server.stop()
        elif (record["kind"], record["step"]) == ("step", 12):
            time.sleep(1.5)  # so that what was logged meanwhile is tried in vain
            self._server.start()

    def close(self) -> None:
        pass


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
