"""A run directory as W&B gets it: configuration, records, state, evaluations, and the identity of its W&B run."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.common import files, locks
from pipeline.common.errors import DataError, UserError
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.runs import predictions
from pipeline.runs.directory import EvaluationDirectory, RunDirectory
from pipeline.runs.log import Log
from pipeline.runs.status import Status

MEND_IDENTITY = (
    "restore it from a copy, or fix it in an editor: its `id` is the last part of the run's address at W&B, and with "
    "another id the run would be sent once more, as a new one"
)


@dataclass(frozen=True)
class Standing:
    """How a run stood at one moment: one reading of its status."""

    status: Status | None
    """None for a run of a version that wrote no status"""
    diverged: bool
    """whether the run failed because its loss was not finite"""

    @property
    def state(self) -> str:
        """`running`, `finished`, `stopped`, `failed` or `killed`; `finished` without a status."""
        return "finished" if self.status is None else self.status.state

    @property
    def is_over(self) -> bool:
        """Whether no record of the last step is still to come: the run finished, or its loss diverged."""
        return self.state == "finished" or self.diverged


@dataclass(frozen=True)
class Identity:
    """The content of wandb.json."""

    id: str
    """of the W&B run"""
    project: str | None
    entity: str | None
    sweep: str | None = None
    """of a trial of W&B's agent"""
    alerts: list[str] = field(default_factory=list)
    """names of those that were sent"""
    sent: int = 0
    """last step that W&B is known to have"""
    offline: int = 0
    """last step of the offline folder"""


@dataclass(frozen=True)
class DivergedStep:
    """What is read of diverged.json."""

    step: int


@dataclass(frozen=True)
class EvaluationFiles:
    """The stored evaluation of one split."""

    directory: EvaluationDirectory
    metrics: dict[str, Any]

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.directory.split

    def summary(self) -> dict[str, Any]:
        """The numbers as `eval/SPLIT/NAME`; of a reading of test, whether it is confirmatory, as `.../protocol`."""
        numbers = {
            name: value
            for name, value in self.metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        protocol = {"protocol": self.metrics["protocol"]["status"]} if "protocol" in self.metrics else {}
        return {f"eval/{self.split}/{name}": value for name, value in (numbers | protocol).items()}

    def files(self) -> list[Path]:
        """Those of the metrics, the tables and the report that exist."""
        folder = self.directory
        paths = (
            folder.metrics_file,
            folder.table("per_class"),
            folder.table("confusion"),
            folder.table("confused_pairs"),
            folder.predictions_file,
            folder.report_file,
        )
        return [path for path in paths if path.is_file()]


@dataclass(frozen=True)
class TrackedRun:
    """A run directory and its configuration."""

    run_dir: Path
    config: Config

    @classmethod
    def open(cls, run_dir: Path, overrides: Sequence[str] = ()) -> "TrackedRun":
        """Open a run directory.

        Args:
            overrides: such as `tracking.project=birds`; they replace values of the run's own configuration.

        Raises:
            UserError: there is no such run, or it has no configuration or no log.
        """
        if not run_dir.is_dir():
            raise DataError(f"{run_dir}: no such run directory; `plumage runs` lists those there are")
        run = RunDirectory(run_dir)
        for path in (run.config_file, run.log_file):
            if not path.is_file():
                raise DataError(f"{path}: missing, so no run has begun here; give a folder such as runs/NAME")
        return cls(run_dir, load_config(run.config_file, overrides))

    @cached_property
    def directory(self) -> RunDirectory:
        """The files of the run."""
        return RunDirectory(self.run_dir)

    def records(self) -> Log:
        """The complete lines of the log."""
        return self.directory.read_log()

    def standing(self) -> Standing:
        """How the run stands now."""
        status, path = self.directory.read_status(), self.directory.diverged_file
        diverged = False
        if status is not None and status.state == "failed" and path.is_file():
            diverged = status.why.startswith(f"step {files.read_json(path, DivergedStep).step}: ")
        return Standing(status, diverged)

    def identity(self) -> Identity:
        """The content of wandb.json, which is written with a new id at the first call.

        Raises:
            DataError: wandb.json is damaged.
        """
        if not self.directory.wandb_file.is_file():
            new = asdict(self._new_identity()).items()
            without_sweep = {key: value for key, value in new if key != "sweep" or value}
            files.write_json(self.directory.wandb_file, without_sweep)
        return files.read_json(self.directory.wandb_file, Identity, MEND_IDENTITY)

    def _new_identity(self) -> Identity:
        """A new id; in a trial of W&B's agent, the id that the agent has chosen."""
        given = {
            name: os.environ.get(f"WANDB_{name}") for name in ("RUN_ID", "PROJECT", "ENTITY", "SWEEP_ID")
        }
        if given["SWEEP_ID"] and given["RUN_ID"]:
            return Identity(given["RUN_ID"], given["PROJECT"], given["ENTITY"], given["SWEEP_ID"])
        tracking = self.config.tracking
        return Identity(secrets.token_hex(4), tracking.project, tracking.entity)

    def note(self, **changed: Any) -> None:
        """Change values of wandb.json."""
        self.identity()  # checks it; what a later version has written stays in the file
        stored = files.read_json(self.directory.wandb_file, dict[str, Any])
        files.write_json(self.directory.wandb_file, {**stored, **changed})

    def offline_folders(self) -> list[Path]:
        """The W&B offline folders of the run: one, or more when a process was killed while it wrote another."""
        return sorted(self.directory.wandb.glob("offline-run-*"))

    @contextmanager
    def locked(self, wait_s: float = 0) -> Iterator[None]:
        """Keep other senders away while the block runs.

        Args:
            wait_s: how long to wait for another sender.

        Raises:
            UserError: another process is still sending the run.
        """
        lock = locks.Lock.wait(self.directory.wandb / "lock", wait_s)
        if lock is None:
            raise UserError(
                f"{self.run_dir}: another process is sending this run to W&B; wait until it is done"
            )
        try:
            yield
        finally:
            lock.close()

    def evaluations(self) -> list[EvaluationFiles]:
        """The evaluations of the run, by the name of their split.

        Raises:
            DataError: the metrics of an evaluation are damaged.
        """
        folders = [
            self.directory.evaluation(path.name) for path in sorted(self.directory.evaluations.glob("*"))
        ]
        return [
            EvaluationFiles(folder, predictions.read_metrics(folder))
            for folder in folders
            if folder.metrics_file.is_file()
        ]
