"""Artifacts of a run: data -> checkpoint -> evaluation. What W&B has already makes no new version."""

import importlib
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.data import prepare, table
from pipeline.errors import UserError
from pipeline.sync.client import Run, Unreachable
from pipeline.sync.evaluation import Evaluation, Table
from pipeline.sync.place import Place
from pipeline.sync.rows import best

Artifact = Any  # wandb.Artifact


class Artifacts:
    """Sends the artifacts of one run; `sent` has what W&B calls them."""

    def __init__(self, place: Place, run: Run, *, offline: bool) -> None:
        self._place, self._run, self._offline = place, run, offline
        self._samples = place.environment().get("samples")
        self._checkpoint: Artifact = None
        self._sha256 = ""
        self.sent: list[str] = []

    def data(self) -> str | None:
        """The sample table that the run trained on, as an input; its pictures stay here.

        Returns why it is left out, if it is.
        """
        config = self._place.config
        path, _ = prepare.places(config)
        if not path.is_file():
            return f"data: {path} is not on this machine"
        samples = table.read(path)
        if table.digest(samples) != self._samples:
            return f"data: {path} is not the sample table of this run"
        counts = {str(split): int(count) for split, count in samples["split"].value_counts().items()}
        about = {"samples": self._samples, "classes": int(samples["label"].nunique()), "images": counts}
        artifact = self._new(f"data-{config.data.source}", "dataset", about)
        _add(artifact, path, "samples.csv")
        self._send(artifact, used=True)
        return None

    def checkpoint(self) -> str | None:
        """`best.pt`, with the digest of the data that it learned from; why it is left out, if it is."""
        path = self._place.run_dir / "checkpoints" / "best.pt"
        if not self._place.config.tracking.log_checkpoint:
            return "checkpoint: tracking.log_checkpoint is false"
        if not path.is_file():
            return f"checkpoint: {path} is missing"
        self._sha256 = files.digest_of_file(path)
        chosen = {key.removeprefix("best/"): value for key, value in best(self._place.records()).items()}
        about = {"samples": self._samples, "sha256": self._sha256, **chosen}
        self._checkpoint = self._new(f"model-{self._run.id}", "model", about)
        _add(self._checkpoint, path, path.name)
        self._send(self._checkpoint)
        return None

    def evaluation(self, found: Evaluation, tables: dict[str, Table]) -> None:
        """Numbers, tables and page of one split, made with the checkpoint."""
        digest = found.metrics.get("checkpoint_sha256")
        about = {"samples": self._samples, "checkpoint_sha256": digest, "split": found.split}
        artifact = self._new(f"evaluation-{self._run.id}-{found.split}", "evaluation", about)
        for path in found.files():
            _add(artifact, path, path.name)
        for name, content in tables.items():
            artifact.add(content, name)
        if self._checkpoint is not None and digest == self._sha256 and not self._offline:
            self._run.use_artifact(self._checkpoint)
        self._send(artifact)

    def _new(self, name: str, kind: str, about: dict[str, Any]) -> Artifact:
        return importlib.import_module("wandb").Artifact(name, kind, metadata=about)

    def _send(self, artifact: Artifact, used: bool = False) -> None:
        """Log an artifact as an output of the run, or as an input, and wait until W&B has it.

        `Run.use_artifact` refuses to work offline; what it calls does not.
        """
        if used:
            self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        else:
            self._run.log_artifact(artifact)
        if not self._offline:
            errors = importlib.import_module("wandb.sdk.artifacts.exceptions")
            name = artifact.name
            try:
                artifact.wait(int(max(self._place.config.tracking.upload_wait_s, 1)))
            except errors.WaitTimeoutError as error:
                raise Unreachable(
                    f"W&B: has not taken {name} in {self._place.config.tracking.upload_wait_s:g} s "
                    f"(tracking.upload_wait_s); nothing is lost, `python -m pipeline sync {self._place.run_dir}` goes on"
                ) from error
            except ValueError as error:
                raise UserError(f"W&B: does not take {name} ({' '.join(str(error).split())})") from error
        self.sent.append(artifact.name)


def _add(artifact: Artifact, path: Path, name: str) -> None:
    """Add a file where it lies: no copy in the client's own folders."""
    artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
