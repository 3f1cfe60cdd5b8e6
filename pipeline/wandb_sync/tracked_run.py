"""A run directory as W&B is told of it: configuration, records, status, and the one W&B run that is its own."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import files, locks
from pipeline.common.errors import DataError, UserError
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.runs import predictions
from pipeline.runs.log import read_log
from pipeline.runs.status import Status, read


@dataclass(frozen=True)
class TrackedRun:
    """A run directory and its configuration."""

    run_dir: Path
    config: Config

    @classmethod
    def of(cls, run_dir: Path, overrides: Sequence[str] = ()) -> "TrackedRun":
        """Open a run directory.

        Args:
            overrides: such as `tracking.project=birds`, over the run's own configuration.

        Raises:
            UserError: there is no such run, or it has no configuration or no log.
        """
        if not run_dir.is_dir():
            raise DataError(
                f"{run_dir}: no such run directory; `python -m pipeline runs` lists those there are"
            )
        for name in ("config.yaml", "log.jsonl"):
            if not (run_dir / name).is_file():
                raise DataError(
                    f"{run_dir / name}: missing, so this is no run that has begun; give a folder such as runs/NAME"
                )
        return cls(run_dir, load_config(run_dir / "config.yaml", overrides))

    @property
    def folder(self) -> Path:
        """What W&B leaves in the run directory."""
        return self.run_dir / "wandb"

    def records(self) -> list[dict[str, Any]]:
        """The whole lines of the log."""
        return read_log(self.run_dir / "log.jsonl")

    def status(self) -> Status | None:
        """How the run stands."""
        return read(self.run_dir)

    def state(self) -> str:
        """`running`, `finished`, `stopped`, `failed` or `killed`; `finished` where an earlier version left no status."""
        found = self.status()
        return "finished" if found is None else found.state

    def diverged(self) -> bool:
        """Whether the run failed because its loss was not finite."""
        path, found = self.run_dir / "diverged.json", self.status()
        if found is None or found.state != "failed" or not path.is_file():
            return False
        return found.why.startswith(f"step {files.read_json(path)['step']}: ")

    def over(self) -> bool:
        """Whether nothing will be added to the last step: the run finished, or its loss diverged."""
        return self.state() == "finished" or self.diverged()

    def environment(self) -> dict[str, Any]:
        """The content of `environment.json`, empty when there is none."""
        path = self.run_dir / "environment.json"
        return files.read_json(path) if path.is_file() else {}

    def known(self) -> dict[str, Any]:
        """What `wandb.json` keeps of the W&B run: made once, with an id of its own.

        id, project, entity; sweep, of a trial of W&B's agent. alerts: those that were sent. sent: last step that
        W&B is known to have. offline: last step of the offline folder.
        """
        path = self.run_dir / "wandb.json"
        if not path.is_file():
            files.write_json(path, {**self._drawn(), "alerts": [], "sent": 0, "offline": 0})
        found: dict[str, Any] = files.read_json(path)
        return found

    def _drawn(self) -> dict[str, str | None]:
        """A new id; in a trial of W&B's agent, the run that the agent has made for it."""
        if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
            names = ("RUN_ID", "PROJECT", "ENTITY", "SWEEP_ID")
            run_id, project, entity, sweep = (os.environ.get(f"WANDB_{name}") for name in names)
            return {"id": run_id, "project": project, "entity": entity, "sweep": sweep}
        tracking = self.config.tracking
        return {"id": secrets.token_hex(4), "project": tracking.project, "entity": tracking.entity}

    def note(self, **changed: Any) -> None:
        """Change values of `wandb.json`."""
        files.write_json(self.run_dir / "wandb.json", {**self.known(), **changed})

    def offline_folders(self) -> list[Path]:
        """The W&B offline folders of the run: one, unless the writing of another was killed."""
        return sorted(self.folder.glob("offline-run-*"))

    @contextmanager
    def alone(self, wait_s: float = 0) -> Iterator[None]:
        """Hold the run for one sender, after at most `wait_s`; a `UserError` says that another process sends it."""
        lock = locks.Lock.wait(self.folder / "lock", wait_s)
        if lock is None:
            raise UserError(
                f"{self.run_dir}: another process is sending this run to W&B; wait until it is done"
            )
        try:
            yield
        finally:
            lock.close()


FILES = (
    "metrics.json",
    "per_class.csv",
    "confusion.csv",
    "confused_pairs.csv",
    "predictions.csv",
    "report.html",
)


@dataclass(frozen=True)
class EvaluationFiles:
    """What `eval` has left of one split."""

    split: str
    folder: Path
    metrics: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The numbers as `eval/SPLIT/NAME`."""
        return {
            f"eval/{self.split}/{name}": value
            for name, value in self.metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def files(self) -> list[Path]:
        """The tables and the page that there are."""
        return [self.folder / name for name in FILES if (self.folder / name).is_file()]


def evaluations(place: TrackedRun) -> list[EvaluationFiles]:
    """The evaluations in a run directory, by the name of their split.

    Raises:
        DataError: one of them is damaged.
    """
    folders = sorted(path.parent for path in place.run_dir.glob("eval/*/metrics.json"))
    return [EvaluationFiles(folder.name, folder, predictions.read_metrics(folder)) for folder in folders]
