"""`train.refit=RUN`: once everything is chosen, the recipe of a run learns from train and validation together.

It takes as many passes over the images as the run had taken at its best epoch, on the same schedule, and its last epoch
is the result: nothing is chosen any more, and no validation is left to fit a temperature or a threshold on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.common import console, files
from pipeline.common.errors import CheckpointError, ConfigError, DataError
from pipeline.config import recipes
from pipeline.config.load import completed, load_config
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.runs import checkpoints
from pipeline.runs.directory import RunDirectory
from pipeline.training.schedule import StepClock, step_clock
from pipeline.training.state import Best

KEY = "train.refit"
ITS_OWN = {"train.early_stop_epochs": "null", "train.eval_every_steps": "null"}
"""keys that need validation, with their values in a refit"""


def configuration(run: Path, overrides: Sequence[str]) -> Config:
    """The configuration of the refit of a run: its own, its chosen length, and another name.

    Args:
        overrides: of the command line, with `train.refit`; none of them changes the recipe.

    Raises:
        UserError: the run is none, has not finished, or has not been validated; or an override changes its recipe.
    """
    source = RunDirectory(run)
    if not source.config_file.is_file():
        raise DataError(
            f"{KEY}: {run} is no run directory, as it has no config.yaml; name one such as runs/NAME"
        )
    others = [text for text in overrides if not text.startswith(f"{KEY}=")]
    place = [f"run.root={run.resolve().parent}", f"run.name={run.resolve().name}-refit"]
    before = load_config(source.config_file, [*place, *others])
    trained = load_config(source.config_file)
    if changed := recipes.changes(trained.model_dump(mode="json"), before.model_dump(mode="json")):
        raise ConfigError(
            f"{KEY}: {', '.join(changed)} would be another recipe than that of {run}; drop the override"
        )
    best, _ = _chosen(source)
    own = [f"{key}={value}" for key, value in ITS_OWN.items()]
    config = load_config(source.config_file, [*place, *others, *own, f"{KEY}={run}"])
    clocks = [step_clock(each, len(prepare.load(each).training_rows(each))) for each in (before, config)]
    steps = _same_moment(best.step, *clocks)
    console.say(
        f"refit  of {run}: {best.step} steps were best on validation (top-1 {best.top1:.4f}); with its images "
        f"{steps} steps are as many epochs"
    )
    return load_config(
        source.config_file, [*place, *others, *own, f"{KEY}={run}", f"train.max_steps={steps}"]
    )


def facts(config: Config, run: Path) -> dict[str, Any]:
    """Of what a run is the refit: run, checkpoint_sha256, and the epoch and step that validation chose, with its top-1.

    Args:
        config: of the refit; it has the recipe of the run.

    Raises:
        UserError: it has another recipe; or see `configuration`.
    """
    source = RunDirectory(run)
    best, content = _chosen(source)
    own = KEY, "train.max_steps", *ITS_OWN
    if changed := recipes.changes(completed(content["config"]), config.model_dump(mode="json"), but_for=own):
        raise ConfigError(
            f"{KEY}: this is another recipe than that of {run} ({', '.join(changed)}); give no configuration, as in "
            f"`plumage train {KEY}={run}`, or plumage.refit from Python"
        )
    return {
        "run": str(run),
        "checkpoint_sha256": files.digest_of_file(source.checkpoint("best")),
        "best_epoch": best.epoch,
        "best_step": best.step,
        "val_top1": best.top1,
    }


def head_weight_decay(run: Path) -> float | None:
    """The weight decay of the linear head that validation chose for a run that began with one (`train.start_from`).

    Raises:
        UserError: see `configuration`.
    """
    _, content = _chosen(RunDirectory(run))
    head = content["weights"].get("head")
    return None if head is None else float(head["weight_decay"])


def _chosen(source: RunDirectory) -> tuple[Best, dict[str, Any]]:
    """What validation chose in a finished run, and the content of that checkpoint."""
    status, path = source.read_status(), source.checkpoint("best")
    if status is not None and status.state != "finished":
        raise CheckpointError(f"{KEY}: the training of {source.path} is {status.state}; let it finish first")
    content = checkpoints.read(path)
    best = checkpoints.part(content, "best", Best | None, path)
    if "soup" in content["weights"]:
        raise ConfigError(
            f"{KEY}: {source.path} is a mean of runs, which no training gives; name one of these runs"
        )
    if best is None or best.top1 is None:
        raise ConfigError(f"{KEY}: {source.path} had no validation, and has learned from all images already")
    if not best.step:
        raise ConfigError(
            f"{KEY}: on validation {source.path} was best before its first step, so no training is left to repeat"
        )
    return best, content


def _same_moment(step: int, before: StepClock, now: StepClock) -> int:
    """The step of a clock at which as many epochs are over as at a step of another one; at least 1."""
    if step >= before.last_step:
        return now.last_step
    epoch = before.epoch(step)
    share = (step - before.starts[epoch]) / before.steps[epoch]
    return max(1, now.starts[epoch] + round(share * now.steps[epoch]))
