"""Artifacts of a run: data -> checkpoint -> evaluation. Unchanged content makes no new version."""

from pathlib import Path
from typing import Any

from pipeline.common import files
from pipeline.data import prepare, sample_table
from pipeline.wandb_sync.client import WandbRun, import_wandb
from pipeline.wandb_sync.rows import best
from pipeline.wandb_sync.tracked_run import EvaluationFiles, TrackedRun

Artifact = Any  # wandb.Artifact


class Artifacts:
    """Sends the artifacts of one run; `sent` holds their names at W&B."""

    def __init__(self, tracked: TrackedRun, run: WandbRun, *, offline: bool) -> None:
        self._tracked, self._run, self._offline = tracked, run, offline
        self._samples = tracked.directory.read_environment().get("samples")
        self._checkpoint: Artifact = None
        self._sha256 = ""
        self.sent: list[str] = []

    def data(self) -> str | None:
        """Send the sample table that the run trained on, as an input of the run, without pictures.

        Returns the reason when it is left out, or None.
        """
        config = self._tracked.config
        path, _ = prepare.output_paths(config)
        if not path.is_file():
            return f"data: {path} is not on this machine"
        samples = sample_table.read(path)
        if sample_table.digest(samples) != self._samples:
            return f"data: {path} is not the sample table of this run"
        counts = {str(split): int(count) for split, count in samples["split"].value_counts().items()}
        metadata = {"samples": self._samples, "classes": int(samples["label"].nunique()), "images": counts}
        artifact = self._new(f"data-{config.data.source}", "dataset", metadata)
        _add(artifact, path, "samples.csv")
        # Run.use_artifact refuses to work offline; the method that it calls does not
        self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        self._wait(artifact)
        return None

    def checkpoint(self) -> str | None:
        """Send the best checkpoint, with the digest of its training data; return the reason when it is left out."""
        path = self._tracked.directory.checkpoint("best")
        if not self._tracked.config.tracking.log_checkpoint:
            return "checkpoint: tracking.log_checkpoint is false"
        if not path.is_file():
            return f"checkpoint: {path} is missing"
        self._sha256 = files.digest_of_file(path)
        chosen = {key.removeprefix("best/"): value for key, value in best(self._tracked.records()).items()}
        metadata = {"samples": self._samples, "sha256": self._sha256, **chosen}
        self._checkpoint = self._new(f"model-{self._run.id}", "model", metadata)
        _add(self._checkpoint, path, path.name)
        self._run.log_artifact(self._checkpoint)
        self._wait(self._checkpoint)
        return None

    def evaluation(self, evaluation: EvaluationFiles, tables: dict[str, Any]) -> None:
        """Send metrics, tables and report of one split; the tables appear in the run's summary, too.

        The checkpoint is an input when it is the one that was evaluated.
        """
        digest, split = evaluation.metrics.get("checkpoint_sha256"), evaluation.split
        metadata = {"samples": self._samples, "checkpoint_sha256": digest, "split": split}
        artifact = self._new(f"evaluation-{self._run.id}-{split}", "evaluation", metadata)
        for path in evaluation.files():
            _add(artifact, path, path.name)
        for name, table in tables.items():
            artifact.add(table, name)
        if self._checkpoint is not None and digest == self._sha256 and not self._offline:
            self._run.use_artifact(self._checkpoint)
        self._run.log_artifact(artifact)
        self._run.summary.update({f"eval/{split}/{name}": table for name, table in tables.items()})
        self._wait(artifact)

    def _new(self, name: str, kind: str, metadata: dict[str, Any]) -> Artifact:
        return import_wandb(self._tracked).Artifact(name, kind, metadata=metadata)

    def _wait(self, artifact: Artifact) -> None:
        """Wait until W&B has an artifact, so that the next one can be made from it."""
        if not self._offline:
            artifact.wait(int(max(self._tracked.config.tracking.upload_wait_s, 1)))
        self.sent.append(artifact.name)


def _add(artifact: Artifact, path: Path, name: str) -> None:
    """Add a file without a copy in the client's own folders."""
    artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
