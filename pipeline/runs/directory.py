"""A run directory: the name of every file in it, and how it is read."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from pipeline.common import files
from pipeline.runs import log, status

Checkpoint = Literal["best", "last"]
Table = Literal["per_class", "confusion", "confused_pairs", "class_order", "reliability", "coverage"]


class _Environment(BaseModel):
    """What the readers of environment.json take for granted."""

    packages: dict[str, str | None]
    command: list[str] = []
    git: dict[str, Any] | None = None
    samples: str = ""


class RunDirectory:
    """RUN, as training, evaluation and tracking leave it; each file may be missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.environment_file = path / "environment.json"
        self.history_file = path / "history.json"  # the processes that trained it
        self.taxonomy_file = path / "taxonomy.csv"  # the hierarchy above its classes
        self.diff_file = path / "diff.patch"  # changes of the code since its commit
        self.log_file = path / "log.jsonl"
        self.status_file = path / "status.json"
        self.diverged_file = path / "diverged.json"  # the batch whose loss was not finite
        self.curves_file = path / "curves.png"
        self.schedule_file = path / "schedule.png"
        self.lr_find_table = path / "lr_find" / "lr_find.csv"
        self.lr_find_figure = path / "lr_find" / "lr_find.png"
        self.checkpoints = path / "checkpoints"
        self.evaluations = path / "eval"
        self.features = path / "eval" / "features"
        self.test_readings_file = path / "test_reads.jsonl"  # a line a reading of the test split
        self.probe_folder = path / "probe"
        self.unknown_file = path / "unknown" / "unknown.json"
        self.unknown_threshold_file = path / "unknown" / "threshold.npz"  # for "none of these"
        self.export = path / "export"  # the model, for use without this program
        self.registration_file = path / "registration.json"  # what was fixed before its first reading of test
        self.certificate_file = path / "certificate.json"  # what `verify` found
        self.certificate_text = path / "certificate.txt"  # the same, to read
        self.tensorboard = path / "tensorboard"
        self.csv = path / "csv"
        self.wandb = path / "wandb"
        self.wandb_file = path / "wandb.json"  # identity of the W&B run, and what was sent

    def is_run(self) -> bool:
        """Whether a training has begun here."""
        return self.config_file.is_file() and self.log_file.is_file()

    def checkpoint(self, name: Checkpoint) -> Path:
        """The checkpoint that validation chose, or the last one."""
        return self.checkpoints / f"{name}.pt"

    def evaluation(self, split: str) -> "EvaluationDirectory":
        """What `eval` left of a split."""
        return EvaluationDirectory(self.evaluations / split)

    def feature_cache(self, split: str) -> Path:
        """The stored features of a split."""
        return self.features / f"{split}.npz"

    def read_log(self, *, steps: bool = True) -> log.Log:
        """The records so far, with or without those of steps (`log.read_log`).

        Raises:
            DataError: the log is of a later version, or damaged.
        """
        return log.read_log(self.log_file, steps=steps)

    def read_status(self) -> status.Status | None:
        """One snapshot of the run's status; None where no training has begun."""
        return status.read(self.status_file)

    def hold(self) -> status.Hold:
        """Hold the run for this process; a `CheckpointError` while another one trains it."""
        return status.Hold(self.status_file)

    def running(self) -> AbstractContextManager[None]:
        """Hold the run, and mark it as running while the block runs."""
        return status.running(self.status_file)

    def read_environment(self) -> dict[str, Any]:
        """What the run ran on; empty when that is not stored."""
        path = self.environment_file
        if not path.is_file():
            return {}
        files.read_json(path, _Environment)
        return files.read_json(path, dict[str, Any])

    def count_test_readings(self) -> int:
        """How often the run and its probe have read the test split."""
        paths = self.test_readings_file, self.probe_folder / self.test_readings_file.name
        # a damaged line is a reading, too
        return sum(len(path.read_bytes().splitlines()) for path in paths if path.is_file())


def find_run_directories(folder: Path) -> list[RunDirectory]:
    """The run directories below a folder, by path."""
    candidates = [RunDirectory(path.parent) for path in sorted(folder.rglob("config.yaml"))]
    return [run for run in candidates if run.is_run()]


class EvaluationDirectory:
    """RUN/eval/SPLIT: predictions, what was computed from them, the report and the audit."""

    def __init__(self, path: Path) -> None:
        self.path, self.split = path, path.name
        self.predictions_file = path / "predictions.csv"  # a row an image
        self.outputs_file = path / "outputs.npz"  # logits and features of the same images
        self.validation_file = path / "validation.npz"  # logits that fit a temperature
        self.metrics_file = path / "metrics.json"
        self.environment_file = (
            path / "environment.json"
        )  # on what it was predicted, and digests of what was read
        self.thresholds_file = path / "thresholds.json"  # from which probability on an answer is sure
        self.report_file = path / "report.html"
        self.paper_tables = path / "tables"  # as LaTeX and CSV
        self.explanations = path / "explain"
        self.heat_maps_file = self.explanations / "heatmaps.npz"  # id; maps float16 [n, h, w]
        self.pointing_file = self.explanations / "pointing.csv"  # a row an image
        self.pointing_game_file = self.explanations / "pointing_game.csv"  # rates of hits
        self.parts_file = self.explanations / "parts.csv"
        self.views_file = (
            self.explanations / "views.csv"
        )  # the classes named on the box and the background alone
        self.randomised_file = self.explanations / "randomised.csv"  # the pointing game with random weights
        self.nearest_file = self.explanations / "nearest.csv"  # training images near mistaken ones
        self.embedding_file = self.explanations / "embedding.csv"  # t-SNE, a row an image
        self.retrieval_file = self.explanations / "retrieval.json"  # recall@k
        self.audit = AuditDirectory(path / "audit")

    def label_set(self, name: str) -> Path:
        """Images with another label than the data set's, and those left out: id, label."""
        return self.path / "label_sets" / f"{name}.csv"

    def label_sets(self) -> list[Path]:
        """Those that are there."""
        return sorted(self.label_set("*").parent.glob("*.csv"))

    def table(self, name: Table) -> Path:
        """A table that is computed from the predictions."""
        return self.path / f"{name}.csv"


class ProbeDirectory(RunDirectory):
    """RUN/probe: what `probe` left; below it, for each classifier, a folder that `compare` takes as a run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.summary_file = path / "probe.json"
        self.features_file = path / "features.npz"  # of all images

    def classifier(self, name: str) -> RunDirectory:
        """The predictions of one classifier, as an evaluation of test, and its config.yaml."""
        return RunDirectory(self.path / name)


class AuditDirectory:
    """RUN/eval/SPLIT/audit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label_errors_file = path / "label_errors.csv"
        self.corrections_file = path / "corrections.csv"  # the suspects, with decisions to fill in
        self.duplicates_file = path / "duplicates.csv"
        self.leaked_file = path / "near_duplicates_of_train.csv"  # test images, for `eval.labels`
        self.pairs = path / "pairs"  # a picture a pair of near-duplicates
        self.summary_file = path / "summary.json"
