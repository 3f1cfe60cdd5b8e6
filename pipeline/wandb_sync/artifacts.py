"""Artifacts of a run: data -> checkpoint -> evaluation. What W&B has already makes no new version."""

import importlib
from pathlib import Path
from typing import Any

from pipeline.common import files
from pipeline.data import prepare, sample_table
from pipeline.wandb_sync.client import WandbRun
from pipeline.wandb_sync.rows import best
from pipeline.wandb_sync.tracked_run import EvaluationFiles, TrackedRun

Artifact = Any  # wandb.Artifact


class Artifacts:
    """Sends the artifacts of one run; `sent` has what W&B calls them."""

    def __init__(self, place: TrackedRun, run: WandbRun, *, offline: bool) -> None:
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
        path, _ = prepare.output_paths(config)
        if not path.is_file():
            return f"data: {path} is not on this machine"
        samples = sample_table.read(path)
        if sample_table.digest(samples) != self._samples:
            return f"data: {path} is not the sample table of this run"
        counts = {str(split): int(count) for split, count in samples["split"].value_counts().items()}
        about = {"samples": self._samples, "classes": int(samples["label"].nunique()), "images": counts}
        artifact = self._new(f"data-{config.data.source}", "dataset", about)
        _add(artifact, path, "samples.csv")
        # Run.use_artifact refuses to work offline; what it calls does not
        self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        self._wait(artifact)
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
        self._run.log_artifact(self._checkpoint)
        self._wait(self._checkpoint)
        return None

    def evaluation(self, found: EvaluationFiles, tables: dict[str, Any]) -> None:
        """Numbers, tables and page of one split, made with the checkpoint; the run's summary shows the tables."""
        digest = found.metrics.get("checkpoint_sha256")
        about = {"samples": self._samples, "checkpoint_sha256": digest, "split": found.split}
        artifact = self._new(f"evaluation-{self._run.id}-{found.split}", "evaluation", about)
        for path in found.files():
            _add(artifact, path, path.name)
        for name, content in tables.items():
            artifact.add(content, name)
        if self._checkpoint is not None and digest == self._sha256 and not self._offline:
            self._run.use_artifact(self._checkpoint)
        self._run.log_artifact(artifact)
        self._run.summary.update(
            {f"eval/{found.split}/{name}": sample_table for name, table in tables.items()}
        )
        self._wait(artifact)

    def _new(self, name: str, kind: str, about: dict[str, Any]) -> Artifact:
        return importlib.import_module("wandb").Artifact(name, kind, metadata=about)

    def _wait(self, artifact: Artifact) -> None:
        """Wait until W&B has an artifact, so that the next one can be made from it."""
        if not self._offline:
            artifact.wait(int(max(self._place.config.tracking.upload_wait_s, 1)))
        self.sent.append(artifact.name)


def _add(artifact: Artifact, path: Path, name: str) -> None:
    """Add a file where it lies: no copy in the client's own folders."""
    artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
