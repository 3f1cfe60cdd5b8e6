"""Where the records of a run go: into log.jsonl always, and from there to whatever was asked for."""

import csv
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TextIO

from pipeline.config.schema import Config
from pipeline.runs.log import ALL, CLOCKS, FIELDS, Log, LogRecord
from pipeline.runs.wandb_process import OfflineWriter, OnlineSender


class Tracker(Protocol):
    """Takes records: see `records.FIELDS`."""

    def log(self, record: LogRecord) -> None:
        """Take one record."""

    def close(self) -> None:
        """No more records will come."""


class NullTracker:
    """Takes records to nowhere: what ranks other than the first have."""

    def log(self, record: LogRecord) -> None:
        """Drop a record."""

    def close(self) -> None:
        """Nothing to close."""


class MultiTracker:
    """Hands each record to one tracker, then to another."""

    def __init__(self, one: Tracker, other: Tracker) -> None:
        self._one, self._other = one, other

    def log(self, record: LogRecord) -> None:
        """Hand a record on."""
        self._one.log(record)
        self._other.log(record)

    def close(self) -> None:
        """Close both."""
        self._one.close()
        self._other.close()


class JsonlTracker:
    """Writes each record to log.jsonl, and hands it, as it stands there, to several trackers."""

    def __init__(self, log: Log, trackers: Iterable[Tracker]) -> None:
        self._log, self._trackers = log, tuple(trackers)

    def log(self, record: LogRecord) -> None:
        """Write a record and hand it on."""
        written = self._log.append(record)
        for tracker in self._trackers:
            tracker.log(written)

    def close(self) -> None:
        """Close the log, then the trackers."""
        self._log.close()
        for tracker in self._trackers:
            tracker.close()


class TensorBoard:
    """Event files with a scalar `KIND/FIELD` at its step, of every number that a record has."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # takes a second

        self._writer = SummaryWriter(folder)

    def log(self, record: LogRecord) -> None:
        """Write a record's numbers, and its histograms."""
        step, when = record["step"], record.get("time")
        for name in FIELDS[record["kind"]]:
            value = record[name]
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, step, when, new_style=True)
        for name, histogram in record.get("histograms", {}).items():
            self._add_histogram(f"gradients/{name}", histogram["counts"], histogram["edges"], step, when)

    def _add_histogram(
        self, tag: str, counts: list[int], edges: list[float], step: int, when: float | None
    ) -> None:
        """Centres stand for the values of a bin in the sums: the values themselves are not in the log."""
        centres = [(low + high) / 2 for low, high in pairwise(edges)]
        self._writer.add_histogram_raw(
            tag,
            min=edges[0],
            max=edges[-1],
            num=sum(counts),
            sum=sum(n * x for n, x in zip(counts, centres, strict=True)),
            sum_squares=sum(n * x * x for n, x in zip(counts, centres, strict=True)),
            bucket_limits=edges[1:],
            bucket_counts=counts,
            global_step=step,
            walltime=when,
        )

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Csv:
    """A table for each kind of record, KIND.csv, a row a record; histograms are left out."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._tables: dict[str, TextIO] = {}

    def log(self, record: LogRecord) -> None:
        """Append a row."""
        kind = record["kind"]
        if kind == "gradients":
            return
        columns = [name for name in (*ALL, *FIELDS[kind], *CLOCKS) if name != "kind"]
        if kind not in self._tables:
            self._tables[kind] = (self._folder / f"{kind}.csv").open("w", encoding="utf-8", newline="")
            csv.writer(self._tables[kind]).writerow(columns)
        csv.writer(self._tables[kind]).writerow([record.get(name) for name in columns])
        self._tables[kind].flush()

    def close(self) -> None:
        """Close the tables."""
        for table in self._tables.values():
            table.close()


def build_tracker(config: Config, step: int) -> Tracker:
    """Where the records of a run go that goes on from `step`, as `config.tracking` has it.

    What is made from the log is made anew from its records so far: after a kill it holds what the log holds.

    Raises:
        DataError: the log is of a later version, or damaged.
    """
    log = Log(config.run_dir / "log.jsonl", step)
    made: list[Tracker] = []
    for wanted, kind, name in (
        (config.tracking.tensorboard, TensorBoard, "tensorboard"),
        (config.tracking.csv, Csv, "csv"),
    ):
        folder = config.run_dir / name
        if wanted:
            shutil.rmtree(folder, ignore_errors=True)
            made.append(kind(folder))
    for record in log.before:
        for one in made:
            one.log(record)
    if config.tracking.wandb == "online":
        made.append(OnlineSender(config))
    elif config.tracking.wandb == "offline":
        made.append(OfflineWriter(config))
    return JsonlTracker(log, made)
