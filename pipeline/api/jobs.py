"""Preparing, training and evaluating as functions of a program, in one process; the command line does the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pipeline.api.configuration import NOTHING, Configuration, Keys, as_texts, config_of_run, to_config
from pipeline.common.errors import ConfigError, refusals_as_sentences
from pipeline.common.tables import read_csv
from pipeline.config.schema import Config
from pipeline.data import prepare as data_stages
from pipeline.data.prepare import Prepared
from pipeline.distributed.environment import world_size
from pipeline.evaluation import screen
from pipeline.evaluation.evaluate import evaluate_split
from pipeline.runs import predictions, wandb_process
from pipeline.runs.directory import RunDirectory
from pipeline.training import refit as refits
from pipeline.training import trainer

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Training:
    """A trained run: its folder, and the checkpoint of its best epoch.

    best_epoch (from 1) and best_step are where validation was best (`chosen_by` "validation"), or the last ones where
    nothing validates ("last epoch"). best_val_top1: 0..1, or None. step: of the last one.
    """

    run: Path
    checkpoint: Path
    best_epoch: int
    best_step: int
    best_val_top1: float | None
    chosen_by: str
    step: int


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a split. folder: of its files; metrics: the content of metrics.json."""

    run: Path
    split: Split
    folder: Path
    metrics: dict[str, Any]

    @property
    def top1(self) -> float:
        """The share of images whose most likely class is the true one, 0..1."""
        return float(self.metrics["top1"])

    def per_class(self) -> pd.DataFrame:
        """A row a class: label, class_name, n, correct, accuracy (0..1) and its interval, and more (per_class.csv)."""
        path = RunDirectory(self.run).evaluation(self.split).table("per_class")
        return read_csv(path, {"label": "int64", "class_name": str}, predictions.AGAIN)

    def predictions(self) -> pd.DataFrame:
        """A row an image: id, path, label, class_name, predicted, predicted_name, confidence and more."""
        folder = RunDirectory(self.run).evaluation(self.split)
        return predictions.read_table(folder, predictions.read_class_names(folder))


@refusals_as_sentences()
def prepare(config: Configuration, overrides: Keys = NOTHING, *, verify: bool = False) -> Prepared:
    """Make the data ready, as `plumage data` does: what is up to date is skipped.

    Args:
        config: a `Config`, the path of a YAML file, or keys that depart from the defaults.
        overrides: keys that replace others, such as {"data.root": "data"}.
        verify: whether to read everything again, and rebuild what has changed.

    Returns:
        The sample table (`samples`: a row an image), and the store of its pictures.

    Raises:
        UserError: anything about the configuration, the pictures or the disk that you can fix.
    """
    return data_stages.prepare(_alone("prepare", to_config(config, overrides)), verify)


@refusals_as_sentences()
def train(config: Configuration, overrides: Keys = NOTHING) -> Training:
    """Train, or resume where the run was interrupted, as `plumage train` does; in the main thread of a program.

    Args:
        config: a `Config`, the path of a YAML file, or keys that depart from the defaults.
        overrides: keys that replace others, such as {"run.name": "low_lr", "optim.lr": 0.01}.

    Raises:
        UserError: data, weights or checkpoint are missing or do not fit; `Diverged`: the loss is not finite.
        Stopped: a signal came (Ctrl-C, say); everything is saved, and the same call resumes.
    """
    return _trained(_alone("train", to_config(config, overrides)))


@refusals_as_sentences()
def refit(run: str | Path, overrides: Keys = NOTHING) -> Training:
    """Train the recipe of a run on train and validation together, as `plumage train train.refit=RUN` does.

    Args:
        run: a finished run's folder; validation has chosen the number of epochs there.
        overrides: keys that change no recipe, such as {"run.name": "final"}; without it the name of the run and -refit.

    Raises:
        UserError: it is not a run, has not finished, or has no validation; or an override changes its recipe.
        Stopped: as of `train`.
    """
    folder = Path(run).expanduser()
    return _trained(_alone("refit", refits.configuration(folder, as_texts(overrides))))


def _trained(config: Config) -> Training:
    result = trainer.train(config)
    return Training(
        run=Path(result["run"]),
        checkpoint=Path(result["checkpoint"]),
        best_epoch=result["best_epoch"],
        best_step=result["best_step"],
        best_val_top1=result["best_val_top1"],
        chosen_by=result["chosen_by"],
        step=result["step"],
    )


@refusals_as_sentences()
def evaluate(run: str | Path, split: Split = "test", overrides: Keys = NOTHING) -> Evaluation:
    """Predict a split with the run's best checkpoint and write RUN/eval/SPLIT, as `plumage eval` does.

    Each evaluation of test is counted in the run.

    Args:
        run: the run's folder, such as "runs/birds".
        overrides: keys that replace those of the run, such as {"eval.tta": "flip", "report.write": False}.

    Raises:
        UserError: there is no such run, or its checkpoint or its data are missing or do not belong together.
    """
    texts = [*as_texts(overrides), *as_texts({"eval.split": split})]
    config = _alone("evaluate", config_of_run(Path(run).expanduser(), texts))
    metrics = evaluate_and_report(config)
    return Evaluation(config.run_dir, split, RunDirectory(config.run_dir).evaluation(split).path, metrics)


def evaluate_and_report(config: Config) -> dict[str, Any]:
    """Predict a split, write its report, show both, and bring W&B up to them: metrics.json's content, {} on other ranks.

    Raises:
        UserError: as `evaluate_split`.
    """
    metrics = evaluate_split(config)
    if metrics:
        folder = RunDirectory(config.run_dir).evaluation(config.eval.split)
        if config.report.write:
            from pipeline.report import page  # and all that explains: not for a number alone

            page.build(config, folder, recompute=False)
        screen.show(folder)
        wandb_process.publish(config)
    return metrics


def _alone(function: str, config: Config) -> Config:
    """The configuration; a `ConfigError` where this process is one of several ranks, of which one alone has results."""
    if (ranks := world_size()) > 1:
        raise ConfigError(
            f"plumage.{function}: this process is one of {ranks} ranks, but the Python functions are for "
            "one; run the command-line verb on them all: python -m pipeline.launch"
        )
    return config
