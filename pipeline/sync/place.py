"""A run directory as W&B is told of it: configuration, records, status, and the one W&B run that is its own."""

import fcntl
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import config_file, files, records, status
from pipeline.config import Config
from pipeline.errors import DataError, UserError


@dataclass(frozen=True)
class Place:
    """A run directory and its configuration."""

    run_dir: Path
    config: Config

    @classmethod
    def of(cls, run_dir: Path, overrides: Sequence[str] = ()) -> "Place":
        """Open a run directory.

        Args:
            overrides: such as `tracking.project=birds`, over the run's own configuration.

        Raises:
            UserError: there is no such run, or it has no configuration or no log.
        """
        if not run_dir.is_dir():
            raise DataError(f"{run_dir}: no such run directory; `python -m pipeline runs` lists those there are")
        for name in ("config.yaml", "log.jsonl"):
            if not (run_dir / name).is_file():
                raise DataError(
                    f"{run_dir / name}: missing, so this is no run that has begun; give a folder such as runs/NAME"
                )
        return cls(run_dir, config_file.load(run_dir / "config.yaml", overrides))

    @property
    def folder(self) -> Path:
        """What W&B leaves in the run directory."""
        return self.run_dir / "wandb"

    def records(self) -> list[dict[str, Any]]:
        """The whole lines of the log."""
        return records.read(self.run_dir / "log.jsonl")

    def status(self) -> status.Status | None:
        """How the run stands."""
        return status.read(self.run_dir)

    def state(self) -> str:
        """`running`, `finished`, `stopped`, `failed` or `killed`; of a run that says nothing, `stopped`."""
        found = self.status()
        return "stopped" if found is None else found.state

    def over(self) -> bool:
        """Whether nothing can be added to the last step: the run finished, or its loss diverged."""
        diverged = self.state() == "failed" and (self.run_dir / "diverged.json").is_file()
        return self.state() == "finished" or diverged

    def environment(self) -> dict[str, Any]:
        """The content of `environment.json`, empty when there is none."""
        path = self.run_dir / "environment.json"
        return files.read_json(path) if path.is_file() else {}

    def identity(self) -> dict[str, Any]:
        """Id, project and entity of the W&B run, and the alerts that were sent; drawn once, then kept in `wandb.json`."""
        path = self.run_dir / "wandb.json"
        if not path.is_file():
            tracking = self.config.tracking
            drawn = {"id": secrets.token_hex(4), "project": tracking.project, "entity": tracking.entity}
            files.write_json(path, {**drawn, "alerts": []})
        found: dict[str, Any] = files.read_json(path)
        return found

    def note_alert(self, alert: str) -> None:
        """Remember that an alert was sent."""
        known = self.identity()
        files.write_json(self.run_dir / "wandb.json", {**known, "alerts": [*known["alerts"], alert]})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the run for one sender; a `UserError` says that another process sends it."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.run_dir}: another process is sending this run to W&B; wait until it is done"
                ) from None
            yield
