"""Where numbers leave: JSON lines always, Weights & Biases if asked."""

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline import files, terminal
from pipeline.config import Config

Record = Mapping[str, Any]


class Tracker(Protocol):
    """Takes records: plain scalars with at least `kind` ("step", "val", "phase" or "epoch") and `step`."""

    def log(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """No more records will come."""


class Nothing:
    """Takes records to nowhere: what ranks other than the first have."""

    def log(self, record: Record) -> None:
        """Drop a record."""

    def close(self) -> None:
        """Nothing to close."""


class JsonLines:
    """Appends records to a file, one a line, each with `seconds` and `cpu_seconds` of the run so far.

    The first is what the clock says, the second what this process computed; the time in which the run
    was interrupted counts in neither.
    On opening, a half line that a kill left at the end and the records of steps that will be done
    again (beyond `step`) are taken out, so that an interrupted run has the log of one that was not.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [(line, record) for line, record in read_lines(path) if record["step"] <= step]
        files.write_text(path, "".join(line for line, _ in kept))
        self._stream = path.open("a", encoding="utf-8")
        last = kept[-1][1] if kept else {}
        self._clocks = [
            (name, clock, last.get(name, 0.0) - clock())
            for name, clock in (("seconds", time.monotonic), ("cpu_seconds", time.process_time))
        ]

    def log(self, record: Record) -> None:
        """Append a record; it survives a kill of the process from here on."""
        clocks = {name: round(before + clock(), 3) for name, clock, before in self._clocks}
        self._stream.write(json.dumps({**record, **clocks}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Sync and close the file."""
        os.fsync(self._stream.fileno())
        self._stream.close()


class Wandb:
    """A run of Weights & Biases; its id stands in the run directory, so that a resumed run goes on."""

    def __init__(self, config: Config) -> None:
        import wandb

        id_file = config.run_dir / "wandb_id"
        run_id = id_file.read_text().strip() if id_file.is_file() else secrets.token_hex(4)
        self._run = wandb.init(
            mode=config.tracking.wandb,
            project=config.tracking.project,
            entity=config.tracking.entity,
            name=config.run.name,
            id=run_id,
            resume="allow",
            dir=config.run_dir,
            config=config.model_dump(mode="json"),
        )
        files.write_text(id_file, run_id + "\n")

    def log(self, record: Record) -> None:
        """Send a record at its step."""
        values = {f"{record['kind']}/{name}": v for name, v in record.items() if name not in ("kind", "step")}
        self._run.log(values, step=record["step"])

    def close(self) -> None:
        """Finish the upload."""
        self._run.finish()


class Several:
    """Hands each record to several trackers."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def log(self, record: Record) -> None:
        """Hand a record on."""
        for tracker in self._trackers:
            tracker.log(record)

    def close(self) -> None:
        """Close all of them."""
        for tracker in self._trackers:
            tracker.close()


def tracker(config: Config, step: int) -> Tracker:
    """The trackers that `config` asks for, going on from `step`.

    When W&B cannot start (no key, no network), training goes on without it after one warning.
    """
    lines = JsonLines(config.run_dir / "log.jsonl", step)
    if config.tracking.wandb == "disabled":
        return lines
    from wandb.errors import Error

    try:
        return Several(lines, Wandb(config))
    except Error as error:
        terminal.warn(f"W&B does not start ({error}); going on with {config.run_dir / 'log.jsonl'} alone")
        return lines


def read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The whole lines of a log with their records; a half line at the end is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [(line, json.loads(line)) for line in lines if line.endswith("\n")]
