"""Where the records of a run go: always into its log, and from there to TensorBoard, CSV tables and W&B on request."""

import csv
import shutil
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TextIO

from pipeline.common import console
from pipeline.common.errors import close_after, named
from pipeline.config.schema import Config
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import ALL, CLOCKS, FIELDS, LogRecord, LogWriter, records
from pipeline.runs.wandb_process import OfflineWriter, OnlineSender


class Tracker(Protocol):
    """Takes the records of a run; `runs.log.FIELDS` lists their fields."""

    def log(self, record: LogRecord) -> None:
        """Take one record."""

    def close(self) -> None:
        """Finish: no more records will come."""


class NullTracker:
    """Drops all records: the tracker of every rank but the first."""

    def log(self, record: LogRecord) -> None:
        """Drop a record."""

    def close(self) -> None:
        """Nothing to close."""


class MultiTracker:
    """Hands each record to several trackers, in their order."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def log(self, record: LogRecord) -> None:
        """Hand a record on."""
        for tracker in self._trackers:
            tracker.log(record)

    def close(self) -> None:
        """Close all trackers."""
        _close_all(self._trackers)


class JsonlTracker:
    """Writes each record to the log, and hands it on as it was written."""

    def __init__(self, log: LogWriter, trackers: Iterable[Tracker]) -> None:
        self._log, self._trackers = log, tuple(trackers)

    def log(self, record: LogRecord) -> None:
        """Write a record and hand it on."""
        written = self._log.append(record)
        for tracker in self._trackers:
            tracker.log(written)

    def close(self) -> None:
        """Close the log, then the trackers."""
        with close_after(lambda: _close_all(self._trackers), console.warn):
            self._log.close()


def _close_all(trackers: Sequence[Tracker]) -> None:
    """Close each tracker, whatever becomes of the others; the first error is raised."""
    if trackers:
        with close_after(lambda: _close_all(trackers[1:]), console.warn):
            trackers[0].close()


class TensorBoard:
    """Event files: a scalar `KIND/FIELD` for every number of a record, at the record's step."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # takes a second

        self._folder, self._writer = folder, SummaryWriter(folder)

    def log(self, record: LogRecord) -> None:
        """Write a record's numbers, and its histograms."""
        with named(self._folder):
            self._write(record)

    def _write(self, record: LogRecord) -> None:
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
        """Add a histogram; its sums are computed from the centres of the bins, as the log has no single values."""
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
        """Write what is still in memory."""
        with named(self._folder):
            self._writer.close()


class Csv:
    """A table for each kind of record, KIND.csv, with a row a record; histograms have none."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._tables: dict[str, TextIO] = {}

    def log(self, record: LogRecord) -> None:
        """Append a row."""
        with named(self._folder):
            self._append(record)

    def _append(self, record: LogRecord) -> None:
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
        with named(self._folder):
            for table in self._tables.values():
                table.close()


def build_tracker(config: Config, step: int) -> Tracker:
    """The trackers that `config.tracking` asks for, of a run that continues from `step`.

    TensorBoard's events and the CSV tables are made anew from the log: after a kill they hold what the log holds.

    Raises:
        DataError: the log is of a later version, or damaged.
    """
    run = RunDirectory(config.run_dir)
    log = LogWriter(run.log_file, step)
    trackers: list[Tracker] = []
    for asked_for, kind, folder in (
        (config.tracking.tensorboard, TensorBoard, run.tensorboard),
        (config.tracking.csv, Csv, run.csv),
    ):
        if asked_for:
            shutil.rmtree(folder, ignore_errors=True)
            trackers.append(kind(folder))
    for record in records(run.log_file) if trackers else ():
        for tracker in trackers:
            tracker.log(record)
    if config.tracking.wandb == "online":
        trackers.append(OnlineSender(config))
    elif config.tracking.wandb == "offline":
        trackers.append(OfflineWriter(config))
    return JsonlTracker(log, trackers)
