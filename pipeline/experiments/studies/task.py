"""One run of a study as a task of a worker process."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.common import files
from pipeline.config.schema import Config
from pipeline.experiments import worker_pool
from pipeline.experiments.worker_pool import Outcome
from pipeline.runs.directory import RunDirectory


@dataclass(frozen=True)
class RunTask:
    """Train a run and, with `test`, evaluate it once on the test split."""

    config: Config
    test: bool

    @property
    def log(self) -> Path:
        """The file of the run's standard error."""
        return self.config.run_dir / "output.log"

    def run(self) -> Outcome:
        """Train and evaluate in this process."""
        worker_pool.redirect_output(self.log)
        from pipeline.training.trainer import train

        train(self.config)
        if self.test:
            _evaluate_once(self.config)
        return Outcome("done")


def _evaluate_once(config: Config) -> None:
    """Read the test split, unless this very checkpoint has been evaluated."""
    from pipeline.evaluation.evaluate import evaluate_split
    from pipeline.runs import predictions

    run = RunDirectory(config.run_dir)
    test, best = run.evaluation("test"), files.digest_of_file(run.checkpoint("best"))
    if not test.metrics_file.is_file() or predictions.read_metrics(test)["checkpoint_sha256"] != best:
        evaluate_split(config)
