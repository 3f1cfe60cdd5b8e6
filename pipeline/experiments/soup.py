"""The verb `soup`: runs that differ only in the seed become one run with the mean of their weights, if that is better.

Validation judges it, as it judges an epoch; test is not read. Weights can be averaged only where training has begun at
the same ones and has not gone far: with heads that begin at random, each run has its own, and their mean answers badly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.common import console, files
from pipeline.common.errors import CheckpointError, ConfigError, DataError
from pipeline.config import load, recipes
from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import Config
from pipeline.distributed.process_group import Ranks, select_device
from pipeline.inference.predict import predict_rows
from pipeline.models.build import build_model, without_weights
from pipeline.models.pretrained import load_weights
from pipeline.runs import checkpoints, environment, repeats
from pipeline.runs.directory import Checkpoint, RunDirectory
from pipeline.runs.log import LogWriter
from pipeline.runs.status import running
from pipeline.training import weight_soup
from pipeline.training.setup import TrainingSetup
from pipeline.training.state import Best

APART = (
    "the runs lie too far apart for a mean: heads that begin at random differ in every seed; seeds that begin at one "
    "head (train.start_from=probe), or are trained for fewer epochs at a lower rate, lie closer"
)


@dataclass(frozen=True)
class Ingredient:
    """A run, its best or its last checkpoint, and how good that is on validation."""

    run: Path
    content: dict[str, Any]
    """as `_read` gives it"""
    sha256: str
    validated: Best

    @property
    def weights(self) -> dict[str, Tensor]:
        """Those that were validated: the average (EMA), if there is one."""
        weights: dict[str, Tensor] = self.content["model"]
        return weights


@dataclass(frozen=True)
class Soup:
    """The mean of some runs' weights, batch norms renewed, and how good it is on validation."""

    method: str
    of: list[Ingredient]
    weights: dict[str, Tensor]
    validated: Best


def soup(paths: Sequence[Path], overrides: Sequence[str]) -> dict[str, Any]:
    """Make a run of the mean of the weights of runs, if validation finds it better than the best of them.

    Two means are tried: of all runs (uniform), and of those that a greedy choice adds, best first, as long as validation
    gets no worse (Wortsman et al. 2022). What was measured is returned in plain types; `soup` is the new run, or None.

    Args:
        paths: run directories, or folders of `plumage repeat`.
        overrides: of the new run's configuration, such as run.name=NAME; of these only `run`, `eval`, `train.device`,
            and where the data lie. eval.checkpoint=last takes the last checkpoints of the runs, not their best.

    Raises:
        UserError: the runs are not of one recipe but for the seed, validated on other images, or not at all, or there is
            a folder of the new run's name.
    """
    runs = [run for path in paths for run in _runs_of(path)]
    if len(runs) < 2 or len({run.resolve() for run in runs}) < len(runs):
        raise DataError(f"soup: {' '.join(map(str, paths))}: give two or more different run directories")
    config = _configuration(runs[0], paths[0], overrides)
    which = _which(config)
    contents = [_read(RunDirectory(run).checkpoint(which)) for run in runs]
    _check_recipe(runs, contents)
    if config.run_dir.exists():
        raise ConfigError(
            f"run.name: {config.run_dir} already exists; give the soup another name with run.name=NAME"
        )
    averaging = _Averaging(config, which, contents[0], RunDirectory(runs[0]).checkpoint(which))
    ingredients = [averaging.measure(run, content) for run, content in zip(runs, contents, strict=True)]
    soups = [averaging.average("uniform", ingredients), averaging.greedy(ingredients)]
    best_single = _better(ingredients)
    best = _better([one for one in soups if len(one.of) > 1])
    kept = best.validated.beats(best_single.validated)
    result = _result(config if kept else None, ingredients, soups)
    if kept:
        _write(config, best, averaging.setup, result)
        console.say(f"soup   {config.run_dir}: {best.method}, {_percent(best.validated)} on validation")
    else:
        console.say(f"soup   nothing is kept: {result['why']}")
    return result


class _Averaging:
    """Averages weights and measures them on the validation images, all on one device."""

    def __init__(self, config: Config, which: Checkpoint, content: dict[str, Any], path: Path) -> None:
        """content: of the first run's checkpoint, at `path`."""
        self.config, self.which, self.precision = config, which, content["precision"]
        self.ranks = Ranks.single(select_device(config.train))
        self.setup = TrainingSetup(config, self.ranks)
        if not len(self.setup.val_rows):
            raise ConfigError(
                "soup: validation says whether a soup is better, but these runs have no validation images"
            )
        checkpoints.check_data(content, path, self.setup.classes, self.setup.samples)
        model, _ = build_model(without_weights(config.model), len(self.setup.classes))
        self.model = model.to(self.ranks.device)

    def measure(self, run: Path, content: dict[str, Any]) -> Ingredient:
        """A run as it is."""
        path = RunDirectory(run).checkpoint(self.which)
        load_weights(self.model, content["model"], content, path)
        validated = self._measure(content["epoch"], content["step"])
        console.say(f"run    {run}: {_percent(validated)} on validation")
        return Ingredient(run, content, files.digest_of_file(path), validated)

    def average(self, method: str, of: Sequence[Ingredient]) -> Soup:
        """The mean of some runs."""
        weights = [one.weights for one in of]
        first = of[0]
        load_weights(self.model, weight_soup.average(weights), first.content, first.run)
        moved = weight_soup.moved_batchnorms(self.model, weights)
        batches = self.setup.train_loader.batches(0, self.setup.epoch_batches(0)) if moved else ()
        weight_soup.renew_batchnorms(self.model, moved, batches, self.precision, self.ranks.device)
        furthest = max((one.content["epoch"], one.content["step"]) for one in of)
        validated = self._measure(*furthest)
        console.say(f"soup   {method}, {len(of)} runs: {_percent(validated)} on validation")
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
        return Soup(method, list(of), state, validated)

    def greedy(self, ingredients: Sequence[Ingredient]) -> Soup:
        """Runs are added, best first, that make the mean no worse on validation; it begins as the best one alone."""
        best, *others = sorted(ingredients, key=lambda one: one.validated.rank, reverse=True)
        chosen = Soup("greedy", [best], best.weights, best.validated)
        for one in others:
            tried = self.average("greedy", [*chosen.of, one])
            if not chosen.validated.beats(tried.validated):
                chosen = tried
        return chosen

    def _measure(self, epoch: int, step: int) -> Best:
        setup = self.setup
        predictions = predict_rows(
            *(self.model, setup.val_loader, setup.val_rows, self.precision, self.ranks),
            batch_size=self.config.eval.batch_size,
        )
        return Best(epoch, step, *predictions.top1_and_loss(setup.labels))


def _runs_of(path: Path) -> Sequence[Path]:
    repeat = repeats.read(path)
    return [path] if repeat is None else repeat.runs


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint with the weights that were validated as its `model`, and without the state of its optimizer.

    All runs are in memory at once; a whole checkpoint has two to four times the size of these weights.
    """
    content = checkpoints.read(path)
    weights = content["ema"] or content["model"]
    return {**content, "model": weights, "ema": None, "optimizer": {"state": {}, "param_groups": []}}


def _check_recipe(runs: Sequence[Path], contents: Sequence[dict[str, Any]]) -> None:
    """Raise a `UserError` unless runs differ in the seed alone and validated on the same images."""
    for run in runs:
        status = RunDirectory(run).read_status()
        if status is not None and status.state != "finished":
            raise CheckpointError(f"soup: the training of {run} is {status.state}; let it finish first")
    settings = [load.completed(content["config"]) for content in contents]
    for run, other, content in zip(runs[1:], settings[1:], contents[1:], strict=True):
        if changed := recipes.changes(settings[0], other, but_for=("seed",)):
            raise DataError(
                f"{run}: has a different recipe from {runs[0]} ({', '.join(changed)}); a soup takes runs that differ "
                "only in the seed"
            )
        if content["samples"] != contents[0]["samples"]:
            raise DataError(
                f"{run}: has other validation images than {runs[0]}, and was trained on those of the other, so no image "
                "can judge the mean of both; train the seeds with one validation split, data.split_seed=0"
            )


def _configuration(run: Path, named: Path, overrides: Sequence[str]) -> Config:
    """That of the first run, under a name of its own beside the folder that was named first."""
    path = RunDirectory(run).config_file
    own = [f"run.root={named.resolve().parent}", f"run.name=soup-{named.resolve().name}"]
    trained = load_config(path)
    config = load_config(path, [*own, *overrides])
    if changed := recipes.changes(trained.model_dump(mode="json"), config.model_dump(mode="json")):
        raise ConfigError(
            f"soup: {', '.join(changed)} belongs to training, and nothing is trained here; drop the override"
        )
    return config


def _which(config: Config) -> Checkpoint:
    match config.eval.checkpoint:
        case "best" | "last" as which:
            return which
        case other:
            raise ConfigError(
                f"eval.checkpoint: {other}: a soup is made of runs' best or last checkpoints; give one of these"
            )


def _better(candidates: Sequence[Any]) -> Any:
    """The one that validation would choose; of equals the first."""
    return max(candidates, key=lambda one: one.validated.rank)


def _result(
    config: Config | None, ingredients: Sequence[Ingredient], soups: Sequence[Soup]
) -> dict[str, Any]:
    """What was measured, in plain types."""
    best_single, mean_top1 = _better(ingredients), _mean_top1(ingredients)
    best = _better([one for one in soups if len(one.of) > 1])
    why = (
        f"{best.method} has {_percent(best.validated)} on validation, the best single run "
        f"{_percent(best_single.validated)}, all {len(ingredients)} on average {100 * mean_top1:.1f} %"
    )
    if (best.validated.top1 or 0.0) < mean_top1:
        why += f"; {APART}"
    return {
        "soup": None if config is None else str(config.run_dir),
        "why": why,
        "runs": [
            {
                "run": str(one.run),
                "seed": one.content["config"]["seed"],
                "code_sha256": RunDirectory(one.run).read_environment().get("code_sha256"),
                "checkpoint_sha256": one.sha256,
                **_numbers(one.validated),
            }
            for one in ingredients
        ],
        "best_single": str(best_single.run),
        "mean_val_top1": mean_top1,
        **{
            one.method: {"of": [str(part.run) for part in one.of], **_numbers(one.validated)} for one in soups
        },
        "chosen": best.method,
    }


def _mean_top1(ingredients: Sequence[Ingredient]) -> float:
    return float(np.mean([one.validated.top1 or 0.0 for one in ingredients]))


def _numbers(validated: Best) -> dict[str, Any]:
    return {"val_top1": validated.top1, "val_loss": validated.loss}


def _percent(validated: Best) -> str:
    return f"{100 * (validated.top1 or 0.0):.1f} %"


def _write(config: Config, chosen: Soup, setup: TrainingSetup, result: dict[str, Any]) -> None:
    """Write a run directory that every verb takes: what it was made of stands in environment.json and the checkpoint."""
    run, first = RunDirectory(config.run_dir), chosen.of[0].content
    parts = [{"run": str(one.run), "checkpoint_sha256": one.sha256} for one in chosen.of]
    made_of = {
        "method": chosen.method,
        "checkpoint": _which(config),
        "of": parts,
        "best_single": result["best_single"],
    }
    weights = {**first["weights"], "soup": made_of}
    content = {
        **first,
        "model": chosen.weights,
        "config": config.model_dump(mode="json"),
        "weights": weights,
        "epoch": chosen.validated.epoch,
        "step": chosen.validated.step,
        "best": vars(chosen.validated),
    }
    with running(run.status_file):
        files.write_text(run.config_file, dump_config(config))
        about = {"precision": first["precision"], "weights": weights, "samples": setup.samples, "ranks": 1}
        files.write_json(
            run.environment_file, {**environment.describe(setup.ranks.device), **about, "soup": result}
        )
        if (diff := environment.diff()) is not None:
            files.write_text(run.diff_file, diff)
        if setup.taxonomy is not None:
            setup.taxonomy.write(run.taxonomy_file)
        log = LogWriter(run.log_file, -1)
        record = {"kind": "val", "step": chosen.validated.step, "epoch": chosen.validated.epoch}
        log.append({**record, **_numbers(chosen.validated)})
        log.close()
        checkpoints.save(run.checkpoint("best"), content)
        checkpoints.link(run.checkpoint("best"), run.checkpoint("last"))
