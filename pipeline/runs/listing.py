"""All runs below a folder: settings, progress and results of each; the differences of two; the removal of some."""

import contextlib
import csv
import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.common import console, files
from pipeline.common.errors import ConfigError, DataError, UserError, refusals_as_sentences
from pipeline.config.key_effects import effect_of
from pipeline.config.load import completed, differences, flatten, read_tree
from pipeline.config.schema import Config
from pipeline.runs import predictions
from pipeline.runs.directory import RunDirectory, find_run_directories
from pipeline.runs.log import Log, LogRecord
from pipeline.runs.status import Status

Settings = dict[str, Any]
SORTS = ("started", "run", "state", "epochs", "best", "test", "seconds")
COLUMNS = ("run", "state", "epochs", "best", "at", "test", "time", "started")


@dataclass(frozen=True)
class ListedRun:
    """A run directory, read."""

    directory: RunDirectory
    name: str
    """its path below the folder that is listed"""

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @cached_property
    def settings(self) -> Settings:
        """The configuration as plain types, with today's defaults for keys that an earlier version did not have."""
        path, defaults = self.directory.config_file, Config().model_dump(mode="json")
        settings = completed(read_tree(path))
        for name in (name for name, default in defaults.items() if isinstance(default, dict)):
            if not isinstance(settings[name], dict):
                raise DataError(f"{path}: damaged ({name} is no section); {files.RESTORE}")
        return settings

    @cached_property
    def status(self) -> Status | None:
        """The status at the first reading; None for a run of a version that wrote none."""
        return self.directory.read_status()

    @property
    def state(self) -> str:
        """One of `status.State`, or unknown."""
        return self.status.state if self.status else "unknown"

    @property
    def started(self) -> str:
        """When the first attempt began, UTC, ISO 8601; empty when that is not known."""
        return self.status.started if self.status else ""

    @cached_property
    def log(self) -> Log:
        """The records so far, of steps the last one alone."""
        return self.directory.read_log(steps=False)

    @property
    def epochs(self) -> int:
        """Epochs completed."""
        return max((record["epoch"] for record in self.log.epochs()), default=0)

    @property
    def best(self) -> LogRecord:
        """The record whose validation chose the best checkpoint; empty without one."""
        return self.log.best() or {}

    @property
    def seconds(self) -> float:
        """Duration of the training without interruptions."""
        return max((record.get("seconds", 0.0) for record in self.log), default=0.0)

    @cached_property
    def test(self) -> float | None:
        """Top-1 on the test split (0..1); None when it was not evaluated."""
        evaluation = self.directory.evaluation("test")
        if not evaluation.metrics_file.is_file():
            return None
        return float(predictions.read_metrics(evaluation)["top1"])

    @property
    def departures(self) -> Settings:
        """Dotted keys of the configuration that are not the defaults, with their values."""
        defaults = dict(flatten(Config().model_dump(mode="json")))
        return {
            key: value
            for key, value in flatten(self.settings)
            if not effect_of(key).name_only and defaults.get(key) != value
        }


def find_runs(folder: Path) -> list[ListedRun]:
    """The runs below a folder, by name.

    Raises:
        DataError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one that holds the runs, such as runs")
    runs = [ListedRun(run, str(run.path.relative_to(folder))) for run in find_run_directories(folder)]
    if not runs:
        raise DataError(f"{folder}: holds no run; `make train` begins one")
    return runs


def list_runs(folder: Path, sort: str, as_csv: bool) -> None:
    """Print a table of the runs below a folder, or CSV with a column for each key in which they differ.

    Args:
        sort: one of SORTS; numbers are sorted downwards, words upwards, missing values come last.

    Raises:
        ConfigError: there is no such column.
        DataError: there is no run, or none that can be read.
    """
    if sort not in SORTS:
        raise ConfigError(f"--sort {sort}: no such column; take {', '.join(SORTS)}")
    runs = _sorted(_readable(find_runs(folder)), sort)
    keys = _differing([run.settings for run in runs])
    if as_csv:
        console.put_out(_csv(runs, keys))
        return
    rows = [(*_cells(run), _settings(run, keys if len(runs) > 1 else [*run.departures])) for run in runs]
    console.put_out("\n".join(console.table([*COLUMNS, "differs in"], rows)))


def _readable(runs: Sequence[ListedRun]) -> list[ListedRun]:
    """Those of the runs whose files can be read; a warning names each of the others."""
    whole = []
    for run in runs:
        try:
            with refusals_as_sentences():
                _cells(run)
        except UserError as error:
            console.warn(f"run {run.name} is not listed: {error}")
        else:
            whole.append(run)
    if not whole:
        raise DataError("no run can be read; the warnings say why")
    return whole


def difference(path_a: Path, path_b: Path) -> dict[str, Any]:
    """Show how two runs differ in configuration, environment and results; return it, key -> both values.

    Raises:
        DataError: a path is no run directory.
    """
    runs = [_run(path) for path in (path_a, path_b)]
    sides: list[dict[str, Any]] = [
        {
            "config": run.settings,
            "environment": _environment(run.directory),
            "result": {
                "state": run.state,
                "epochs": run.epochs,
                "best_val_top1": run.best.get("val_top1"),
                "best_epoch": run.best.get("epoch"),
                "test_top1": run.test,
                "seconds": run.seconds,
            },
        }
        for run in runs
    ]
    differing = {
        key: (a, b) for key, a, b in differences(sides[0], sides[1]) if not key.startswith("config.run.")
    }
    rows = [(key, _word(a), _word(b)) for key, (a, b) in differing.items()]
    names = [str(path_a), str(path_b)]
    console.show_table(" and ".join(names), ["", *names], rows)
    return {"runs": names, "differences": differing}


def remove(paths: Sequence[Path], sure: bool) -> dict[str, Any]:
    """Delete runs after a question on the terminal; return which were deleted.

    Args:
        sure: delete without a question.

    Raises:
        DataError: a path is no run directory, a run is running, or there is no terminal to ask on.
        CheckpointError: a run has begun to run since then.
    """
    runs = [_run(path) for path in dict.fromkeys(paths)]
    for run in runs:
        if run.state == "running":
            raise DataError(f"{run.path}: is running; stop it first")
    sizes = [sum(file.lstat().st_size for file in run.path.rglob("*") if file.is_file()) for run in runs]
    rows = [(*_cells(run), files.size_in_words(size)) for run, size in zip(runs, sizes, strict=True)]
    console.show_table("to be deleted", [*COLUMNS, "size"], rows)
    if not sure and not _agreed(len(runs), sum(sizes)):
        return {"removed": []}
    for run in runs:
        with contextlib.closing(
            RunDirectory(run.path).hold()
        ):  # a training may have begun since the question
            shutil.rmtree(run.path)
    return {"removed": [str(run.path) for run in runs]}


def _agreed(count: int, size_bytes: int) -> bool:
    if not sys.stdin.isatty():
        raise DataError("runs rm: nobody is there to be asked; give --yes")
    console.say(f"delete {count} run{'s' * (count > 1)}, {files.size_in_words(size_bytes)}? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _run(path: Path) -> ListedRun:
    directory = RunDirectory(path)
    if not directory.is_run():
        raise DataError(f"{path}: no run directory (config.yaml, log.jsonl); `plumage runs` lists them")
    return ListedRun(directory, str(path))


def _sorted(runs: list[ListedRun], sort: str) -> list[ListedRun]:
    def key(run: ListedRun) -> tuple[bool, Any]:
        value = {
            "run": run.name,
            "state": run.state,
            "started": run.started or None,
            "epochs": -run.epochs,
            "best": None if "val_top1" not in run.best else -run.best["val_top1"],
            "test": None if run.test is None else -run.test,
            "seconds": -run.seconds,
        }[sort]
        return value is None, value

    return sorted(runs, key=key)


def _differing(settings: Sequence[Settings]) -> list[str]:
    """The keys in which configurations differ from one another."""
    flat = [dict(flatten(tree)) for tree in settings]
    keys = sorted({key for run in flat for key in run if not effect_of(key).name_only})
    return [key for key in keys if any(run.get(key) != flat[0].get(key) for run in flat)]


def _cells(run: ListedRun) -> tuple[str, ...]:
    epochs = f"{run.epochs}/{run.settings['train']['epochs']}"
    seconds = str(timedelta(seconds=round(run.seconds)))
    at = f"{run.best['epoch']:.4g}" if run.best else ""
    scores = [_score(run.best.get("val_top1")), at, _score(run.test)]
    return (run.name, run.state, epochs, *scores, seconds, run.started.replace("+00:00", "Z"))


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _settings(run: ListedRun, keys: Sequence[str]) -> str:
    """`key=value` for those of the keys that are not at their defaults."""
    departures = run.departures
    return " ".join(f"{key}={_word(departures[key])}" for key in keys if key in departures)


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _environment(run: RunDirectory) -> Mapping[str, Any]:
    return {key: value for key, value in run.read_environment().items() if key not in ("time", "command")}


def _csv(runs: Sequence[ListedRun], keys: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fixed = ("run", "state", "epochs", "best_val_top1", "best_epoch", "test_top1", "seconds", "started")
    writer.writerow([*fixed, *keys])
    for run in runs:
        values = dict(flatten(run.settings))
        result = (run.epochs, run.best.get("val_top1"), run.best.get("epoch"), run.test, run.seconds)
        writer.writerow([run.path, run.state, *result, run.started, *(values.get(key) for key in keys)])
    return stream.getvalue().rstrip()
