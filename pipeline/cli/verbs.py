"""What each verb does. Torch is imported by the verb that needs it, so that help answers at once."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.common import console
from pipeline.common.errors import ConfigError, UserError
from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import Config


def data(config: Config) -> dict[str, Any] | None:
    """Download or take the archive, unpack, check, store and split; what is up to date is skipped."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from pipeline.data.prepare_distributed import prepare_distributed as prepare
    else:
        from pipeline.data.prepare import prepare  # type: ignore[assignment]  # starts without torch

    prepare(config)
    return None


def train(config: Config) -> dict[str, Any]:
    """Train, or go on training where the run was interrupted."""
    from pipeline.training.trainer import train

    return train(config)


def evaluate(config: Config) -> dict[str, Any]:
    """Predict a split with a run's checkpoint and report accuracy per class; never trains."""
    from pipeline.evaluation import screen
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.report import page
    from pipeline.runs import predictions

    metrics = evaluate(config)
    if metrics:
        folder = predictions.folder_of(config.run_dir, config.eval.split)
        if config.report.write:
            page.build(config, folder)
        screen.show(folder)
    return _published(config, metrics)


def schedule(config: Config) -> dict[str, Any]:
    """Draw learning rate, momentum and optimizer over the run, before anything is trained."""
    from pipeline.training.schedule_preview import preview

    return preview(config)


def lr_find(config: Config) -> dict[str, Any]:
    """Propose a learning rate: a short training in which it grows (the range test)."""
    from pipeline.training.lr_finder import find_lr

    return find_lr(config)


def summary(config: Config) -> dict[str, Any]:
    """Show a network's layers with output shapes, parameters and multiply-adds; needs no data and no weights."""
    from pipeline.models.summary import summarise

    return summarise(config)


def audit(config: Config) -> dict[str, Any]:
    """Look for likely label errors and near-duplicates in the data, with a trained model's features."""
    from pipeline.audit.audit import audit

    return audit(config)


def report(config: Config) -> dict[str, Any]:
    """Write report.html anew from stored predictions; reads no split again."""
    from pipeline.report.page import rebuild

    return _published(config, rebuild(config))


def _published(config: Config, result: dict[str, Any]) -> dict[str, Any]:
    """Bring W&B up to a result, on the first rank: the others have none."""
    if result:
        from pipeline.runs.wandb_process import publish

        publish(config)
    return result


def config(config: Config) -> None:
    """Print the full configuration: the file, the overrides, and a default for everything else."""
    console.put_out(dump_config(config, comments=True).rstrip())


OF_A_CONFIG: dict[str, Callable[[Config], dict[str, Any] | None]] = {
    "data": data,
    "train": train,
    "eval": evaluate,
    "schedule": schedule,
    "lr-find": lr_find,
    "summary": summary,
    "audit": audit,
    "report": report,
    "config": config,
}


def doctor(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check this machine before an expensive run, and prove what the run will do; trains nothing, keeps nothing."""
    from pipeline.doctor.doctor import doctor

    return doctor(load_config(arguments.config, arguments.words), arguments.quick)


def predict(arguments: argparse.Namespace) -> dict[str, Any]:
    """Name the most likely classes of single pictures, by the run's best checkpoint."""
    from pipeline.evaluation.predict_images import predict

    overrides = [word for word in arguments.words if "=" in word and not Path(word).exists()]
    images = [Path(word) for word in arguments.words if word not in overrides]
    return predict(load_config(arguments.config, overrides), images)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Say whether runs on the same images differ by more than noise; several seeds become mean +- sd."""
    from pipeline.evaluation.compare import compare

    return compare([Path(word) for word in arguments.words], arguments.split, arguments.out)


def study(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs of a study (configs/studies), and write its table and its figure; or all of them."""
    from pipeline.experiments.studies.study import study

    return study(arguments.words[0], arguments.jobs, arguments.words[1:])


def sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the trials of a sweep (W&B's own sweep files, configs/sweeps) without W&B; write their table and the best."""
    from pipeline.experiments.sweeps.sweep import sweep

    path, *more = arguments.words
    return sweep(Path(path), arguments.trials, arguments.jobs, arguments.pruner, more)


def runs(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """List all runs below a folder; `diff RUN RUN` shows in what two differ, `rm RUN...` deletes after asking."""
    from pipeline.runs import listing

    what, *rest = arguments.words or ["runs"]
    paths = [Path(word) for word in rest]
    if what == "diff" and len(paths) == 2:
        return listing.difference(*paths)
    if what == "rm" and paths:
        return listing.remove(paths, arguments.yes)
    if what in ("diff", "rm") or rest:
        raise ConfigError("runs: give a folder, or diff RUN RUN, or rm RUN...")
    listing.list_runs(Path(what), arguments.sort, arguments.csv)
    return None


def sync(arguments: argparse.Namespace) -> dict[str, Any]:
    """Complete the W&B run of each run directory from its log, however often it is called."""
    from pipeline.wandb_sync import sync as wandb_sync

    overrides = [word for word in arguments.words if "=" in word and not Path(word).exists()]
    runs = [Path(word) for word in arguments.words if word not in overrides]
    if not runs:
        raise UserError("sync: no run is named; give run directories, such as runs/NAME")
    if arguments.follow:
        return wandb_sync.follow(runs[0], arguments.follow, overrides)
    return (wandb_sync.offline if arguments.offline else wandb_sync.sync)(runs, overrides)
