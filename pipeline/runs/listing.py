"""All runs below a folder: what each is, how far it is, and what came of it. And two of them side by side."""

import csv
import io
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.common import console, files
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.key_effects import OF_A_NAME
from pipeline.config.load import completed, differences, read_tree
from pipeline.config.schema import Config
from pipeline.runs import predictions, status
from pipeline.runs.log import LogRecord, best_record, read_log

Settings = dict[str, Any]
SORTS = ("started", "run", "state", "epochs", "best", "test", "seconds")
COLUMNS = ("run", "state", "epochs", "best", "at", "test", "time", "started")


@dataclass(frozen=True)
class ListedRun:
    """A run directory, read."""

    path: Path
    name: str
    """its path below the folder that was asked for"""

    @cached_property
    def settings(self) -> Settings:
        """Its configuration as plain types, with today's defaults for what there was not when it was made."""
        return completed(read_tree(self.path / "config.yaml"))

    @cached_property
    def state(self) -> str:
        """As `status.State` has it; unknown for a run from before there was one."""
        found = status.read(self.path)
        return found.state if found else "unknown"

    @cached_property
    def started(self) -> str:
        """When its first attempt began, UTC, ISO 8601; empty when that is not known."""
        found = status.read(self.path)
        return found.started if found else ""

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """Its records."""
        return read_log(self.path / "log.jsonl")

    @property
    def epochs(self) -> int:
        """Epochs completed."""
        return max((record["epoch"] for record in self.log if record["kind"] == "epoch"), default=0)

    @property
    def best(self) -> LogRecord:
        """The record whose validation chose best.pt; empty without one."""
        return best_record(self.log) or {}

    @property
    def seconds(self) -> float:
        """Of training, interruptions left out."""
        return max((record.get("seconds", 0.0) for record in self.log), default=0.0)

    @cached_property
    def test(self) -> float | None:
        """Top-1 on the test split (0..1), if it was read."""
        folder = predictions.folder_of(self.path, "test")
        return (
            float(predictions.read_metrics(folder)["top1"]) if (folder / "metrics.json").is_file() else None
        )

    @property
    def departures(self) -> Settings:
        """Dotted keys of the configuration that are not the defaults, with their values."""
        default = dict(_flat(Config().model_dump(mode="json")))
        own = dict(_flat(self.settings)).items()
        return {
            key: value for key, value in own if not key.startswith(OF_A_NAME) and default.get(key) != value
        }


def find_runs(folder: Path) -> list[ListedRun]:
    """The runs below a folder, by name.

    Raises:
        DataError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one that holds the runs, as run.root has it")
    found = [
        ListedRun(path.parent, str(path.parent.relative_to(folder)))
        for path in sorted(folder.rglob("config.yaml"))
        if is_run(path.parent)
    ]
    if not found:
        raise DataError(f"{folder}: holds no run; `make train` begins one")
    return found


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return (folder / "config.yaml").is_file() and (folder / "log.jsonl").is_file()


def list_runs(folder: Path, sort: str, as_csv: bool) -> None:
    """Print a table of the runs below a folder, or CSV with a column for each key in which they differ.

    Args:
        sort: one of SORTS; numbers fall, words rise, what is missing comes last.

    Raises:
        ConfigError: there is no such column.
        DataError: there is no run, or a file of one is damaged.
    """
    if sort not in SORTS:
        raise ConfigError(f"--sort {sort}: no such column; take {', '.join(SORTS)}")
    found = _sorted(find_runs(folder), sort)
    keys = _differing([run.settings for run in found])
    if as_csv:
        console.put_out(_csv(found, keys))
        return
    shown = [(*_cells(run), _words(run, keys if len(found) > 1 else [*run.departures])) for run in found]
    console.put_out("\n".join(console.table([*COLUMNS, "differs in"], shown)))


def difference(one: Path, other: Path) -> dict[str, Any]:
    """Show in what two runs differ: configuration, environment, results; return it, key -> both values.

    Raises:
        DataError: one of them is no run directory.
    """
    runs = [_run(path) for path in (one, other)]
    sides: list[dict[str, Any]] = [
        {
            "config": run.settings,
            "environment": _environment(run.path),
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
    found = {
        key: (a, b) for key, a, b in differences(sides[0], sides[1]) if not key.startswith("config.run.")
    }
    rows = [(key, _word(a), _word(b)) for key, (a, b) in found.items()]
    console.show_table(f"{one} and {other}", ["", str(one), str(other)], rows)
    return {"runs": [str(one), str(other)], "differences": found}


def remove(paths: Sequence[Path], sure: bool) -> dict[str, Any]:
    """Delete runs, after asking; return which.

    Args:
        sure: do not ask.

    Raises:
        DataError: one of them is no run directory, or is running, or nobody is there to be asked.
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
        shutil.rmtree(run.path)
    return {"removed": [str(run.path) for run in runs]}


def _agreed(count: int, size_bytes: int) -> bool:
    if not sys.stdin.isatty():
        raise DataError("runs rm: nobody is there to be asked; give --yes")
    console.say(f"delete {count} run{'s' * (count > 1)}, {files.size_in_words(size_bytes)}? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _run(path: Path) -> ListedRun:
    if not is_run(path):
        raise DataError(
            f"{path}: no run directory (config.yaml, log.jsonl); `python -m pipeline runs` lists them"
        )
    return ListedRun(path, str(path))


def _sorted(found: list[ListedRun], sort: str) -> list[ListedRun]:
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

    return sorted(found, key=key)


def _differing(settings: Sequence[Settings]) -> list[str]:
    """The keys in which configurations differ from one another."""
    flat = [dict(_flat(one)) for one in settings]
    keys = sorted({key for one in flat for key in one if not key.startswith(OF_A_NAME)})
    return [key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat)]


def _cells(run: ListedRun) -> tuple[str, ...]:
    of_epochs = f"{run.epochs}/{run.settings['train']['epochs']}"
    seconds = str(timedelta(seconds=round(run.seconds)))
    at = f"{run.best['epoch']:.4g}" if run.best else ""
    scores = [_score(run.best.get("val_top1")), at, _score(run.test)]
    return (run.name, run.state, of_epochs, *scores, seconds, run.started.replace("+00:00", "Z"))


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _words(run: ListedRun, keys: Sequence[str]) -> str:
    """The values of the keys in which a run departs from the defaults."""
    departs = run.departures
    return " ".join(f"{key}={_word(departs[key])}" for key in keys if key in departs)


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _environment(run: Path) -> Mapping[str, Any]:
    path = run / "environment.json"
    found = files.read_json(path) if path.is_file() else {}
    return {key: value for key, value in found.items() if key not in ("time", "command")}


def _csv(found: Sequence[ListedRun], keys: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fixed = ("run", "state", "epochs", "best_val_top1", "best_epoch", "test_top1", "seconds", "started")
    writer.writerow([*fixed, *keys])
    for run in found:
        own = dict(_flat(run.settings))
        result = (run.epochs, run.best.get("val_top1"), run.best.get("epoch"), run.test, run.seconds)
        writer.writerow([run.path, run.state, *result, run.started, *(own.get(key) for key in keys)])
    return stream.getvalue().rstrip()


def _flat(tree: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
