"""A sweep: W&B's own sweep file, checked, and what its trials are as run configurations.

The same file runs under `wandb sweep FILE; wandb agent ID` and under `python -m pipeline sweep FILE`. So it is read as
W&B reads it (YAML 1.1), and a trial's parameters become the words that W&B's agent puts for `${args_no_hyphens}`.
Format: https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Field

from pipeline.common.errors import ConfigError
from pipeline.config.key_effects import NAMING_SECTIONS, effect_of
from pipeline.config.load import load_config, validate_tree
from pipeline.config.schema import Config
from pipeline.config.types import Count, Section
from pipeline.experiments.sweeps.parameter import Parameter, Value

FOLDER = Path("configs/sweeps")
BEST = "best.yaml"
ARGUMENTS = "${args_no_hyphens}"
COMMAND = (
    'program: pipeline, command: ["${env}", "${interpreter}", -m, "${program}", train, --config, FILE, "'
    f'{ARGUMENTS}"]'
)
METRICS = {"val_top1": "maximize", "val_loss": "minimize", "train_top1": "maximize", "train_loss": "minimize"}
COMBINATIONS = 1_000  # so many are checked, and tried by a grid, at the most


class Metric(Section):
    """What the trials are compared by."""

    name: str
    """KIND/NAME as in W&B: epoch/val_top1; a trial has its best over the epochs"""
    goal: Literal["minimize", "maximize"] = "minimize"
    """W&B's default is minimize"""


class EarlyTerminate(Section):
    """W&B's hyperband: at some epochs only the best 1/eta of the trials go on."""

    type: Literal["hyperband"]
    min_iter: Count | None = None
    """the first of these epochs; the others are eta times the one before"""
    max_iter: Count | None = None
    """instead of min_iter: epochs of a whole trial, divided by eta, s times"""
    s: Count | None = None
    """with max_iter: how many such epochs there are"""
    eta: Annotated[int, Field(ge=2)] = 3

    @property
    def first_epoch(self) -> int:
        """The first epoch at which trials are ended."""
        if self.min_iter is not None:
            return self.min_iter
        assert self.max_iter is not None, "checked by `Plan`"
        bands = [int(self.max_iter / self.eta**power) for power in range(1, (self.s or 1) + 1)]
        return min(band for band in [self.max_iter, *bands] if band >= 1)


class Sweep(Section):
    """The content of a sweep file."""

    program: str
    command: tuple[str, ...]
    method: Literal["grid", "random", "bayes"]
    metric: Metric
    parameters: dict[str, Any]
    early_terminate: EarlyTerminate | None = None
    run_cap: Count | None = None
    name: str | None = None
    description: str | None = None
    project: str | None = None
    entity: str | None = None


class Base(NamedTuple):
    """What every trial begins with: a configuration file and overrides."""

    file: Path | None
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class SweepPlan:
    """A sweep file with the overrides of the command line; it makes the trials' configurations."""

    path: Path
    more: tuple[str, ...] = ()
    before: "SweepPlan | None" = None
    """the stage before, whose best this one may begin with"""

    @cached_property
    def sweep(self) -> Sweep:
        """The file's content."""
        return validate_tree(_read(self.path), str(self.path), Sweep)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """By dotted key."""
        where = f"{self.path}: parameters"
        return {
            key: validate_tree(_mapping(given, f"{where}.{key}"), f"{where}.{key}", Parameter)
            for key, given in self.sweep.parameters.items()
        }

    @cached_property
    def base(self) -> Base:
        """Of the command, then of the command line; W&B's own tracking is for W&B's agent."""
        file, overrides = _of_command(self.path, self.sweep)
        constants = [f"{key}={p.value}" for key, p in self.parameters.items() if p.kind == "constant"]
        return Base(file, (*overrides, *constants, "tracking.wandb=disabled", *self.more))

    @cached_property
    def searched(self) -> dict[str, Parameter]:
        """The parameters that have more than one value."""
        return {key: p for key, p in self.parameters.items() if p.kind != "constant"}

    @cached_property
    def common(self) -> Config:
        """What the trials have in common; `run` is as a single training would have it."""
        file, overrides = self.known_base()
        return load_config(file, [f"run.name={self.path.stem}", *overrides])

    @property
    def name(self) -> str:
        """The sweep's: `run.name` of the command line, or the file's."""
        return str(self.common.run.name)

    @property
    def folder(self) -> Path:
        """Where everything of the sweep lives."""
        return self.common.run.root / "sweeps" / self.name

    @property
    def metric(self) -> str:
        """Its name in the log's records of epochs."""
        return self.sweep.metric.name.partition("/")[2]

    @property
    def maximised(self) -> bool:
        """Whether more of the metric is better."""
        return self.sweep.metric.goal == "maximize"

    def run_dir(self, number: int) -> Path:
        """Where a trial lives."""
        return self.folder / trial_name(number)

    def config(self, number: int, values: Mapping[str, Value]) -> Config:
        """The run configuration of a trial.

        Raises:
            ConfigError: the values do not fit together.
        """
        group = self.common.tracking.group or self.name
        own = [f"run.root={self.folder}", f"run.name={trial_name(number)}", f"tracking.group={group}"]
        words = [f"{key}={value}" for key, value in values.items()]
        return load_config(self.base.file, [*self.base.overrides, *words, *own, "train.resume=auto"])

    def grid(self) -> list[dict[str, Value]]:
        """All combinations, in the file's order."""
        values = [p.listed for p in self.searched.values()]
        return [dict(zip(self.searched, chosen, strict=True)) for chosen in itertools.product(*values)]

    def definition(self, pruner: str | None) -> dict[str, Any]:
        """What must not change while a sweep goes on, as plain types."""
        common = self.common.model_dump(mode="json")
        sweep = {**self.sweep.model_dump(mode="json"), "run_cap": None}
        return {"sweep": sweep, "pruner": pruner, "config": {**common, **NAMING_SECTIONS}}

    def check(self) -> None:
        """Find every mistake that can be found before a trial.

        Raises:
            ConfigError: the file, the base configuration, or what they make together.
        """
        self._check_metric()
        self._check_stopping()
        if not self.searched:
            raise ConfigError(
                f"{self.path}: parameters: none has more than one value; there is nothing to search"
            )
        for key in self.parameters:
            if effect_of(key).per_trial:
                raise ConfigError(
                    f"{self.path}: parameters.{key}: every trial has its own, given by the sweep"
                )
        for word in self.more:
            if (key := word.partition("=")[0]) in self.searched:
                raise ConfigError(
                    f"{self.path}: {key} is searched; drop {word}, or take {key} out of the parameters"
                )
        if self.sweep.method == "grid":
            self._check_grid()
        known = self.known_base()
        for values in self._samples():
            words = [f"{key}={value}" for key, value in values.items()]
            try:
                load_config(known.file, [*known.overrides, *words])
            except ConfigError as error:
                raise ConfigError(f"{self.path}: a trial with {' '.join(words)}: {error}") from None

    def known_base(self) -> Base:
        """What the trials begin with; of a best that is still to be found, what that stage begins with."""
        before = self.before
        if before is not None and self.base.file == before.folder / BEST and not self.base.file.exists():
            earlier = before.known_base()
            return Base(earlier.file, (*earlier.overrides, *self.base.overrides))
        return self.base

    def _check_metric(self) -> None:
        kind, _, name = self.sweep.metric.name.partition("/")
        where = f"{self.path}: metric"
        known = ", ".join(f"epoch/{one}" for one in METRICS)
        if kind == "test" or name.startswith("test"):
            raise ConfigError(f"{where}.name: the test split never chooses; take epoch/val_top1")
        if kind != "epoch" or name not in METRICS:
            near = difflib.get_close_matches(self.sweep.metric.name, [f"epoch/{one}" for one in METRICS], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {known}"
            raise ConfigError(
                f"{where}.name: {self.sweep.metric.name} is none of the values of an epoch; {hint}"
            )
        if self.sweep.metric.goal != METRICS[name]:
            raise ConfigError(
                f"{where}.goal: {self.sweep.metric.goal} (W&B's default is minimize) would look for the worst "
                f"{name}; write goal: {METRICS[name]}"
            )
        if name.startswith("val") and not self.common.validates:
            raise ConfigError(f"{where}.name: {name} needs validation, and data.val_fraction is 0")

    def _check_stopping(self) -> None:
        rule = self.sweep.early_terminate
        if rule is not None and (rule.min_iter is None) == (rule.max_iter is None):
            raise ConfigError(f"{self.path}: early_terminate: give one of min_iter, and max_iter with s")

    def _check_grid(self) -> None:
        if endless := [key for key, p in self.searched.items() if not p.countable]:
            raise ConfigError(
                f"{self.path}: parameters.{endless[0]}: a grid needs values, or whole numbers from min to max"
            )
        count = math.prod(p.size for p in self.searched.values())
        if count > COMBINATIONS:
            raise ConfigError(f"{self.path}: the grid has {count:,} combinations; at most {COMBINATIONS:,}")

    def _samples(self) -> Iterator[dict[str, Value]]:
        """All combinations of a grid; else each parameter at each value or end, the others at their first."""
        if self.sweep.method == "grid":
            yield from self.grid()
            return
        first = {key: p.ends[0] for key, p in self.searched.items()}
        for key, p in self.searched.items():
            for value in p.ends:
                yield {**first, key: value}


def trial_name(number: int) -> str:
    """`trial-007`."""
    return f"trial-{number:03d}"


def plans(path: Path, more: Sequence[str]) -> list[SweepPlan]:
    """The sweep of a file, or the stages of a folder in the order of their names; all are checked.

    Raises:
        ConfigError: there is no such sweep, or one of them is wrong.
    """
    stages = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not stages or not stages[0].is_file():
        names = sorted(str(one) for one in FOLDER.glob("*"))
        near = difflib.get_close_matches(str(path), names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
        raise ConfigError(f"{path}: no sweep file, and no folder of them; {hint}")
    if len(stages) > 1 and any(word.startswith("run.name=") for word in more):
        raise ConfigError(
            f"{path}: run.name names one sweep, and these are {len(stages)}; give their files one by one"
        )
    found: list[SweepPlan] = []
    for stage in stages:
        found.append(SweepPlan(stage, tuple(more), found[-1] if found else None))
        found[-1].check()
    return found


def _read(path: Path) -> dict[str, Any]:
    """A sweep file as W&B reads it."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    return _mapping(tree, str(path))


def _mapping(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: holds {type(tree).__name__}; it is made of keys with values")
    return tree


def _of_command(path: Path, sweep: Sweep) -> Base:
    """The configuration file and the overrides in a sweep's command."""
    words = [sweep.program if word == "${program}" else word for word in sweep.command]
    begin = words.index("train") if "train" in words else 0
    if words[max(0, begin - 2) : begin] != ["-m", "pipeline"] or words[-1] != ARGUMENTS:
        raise ConfigError(f"{path}: command: has to be a training that ends with the parameters: {COMMAND}")
    rest = words[begin + 1 : -1]
    file = None
    if "--config" in rest[:-1]:
        place = rest.index("--config")
        file = Path(rest[place + 1])
        del rest[place : place + 2]
    if wrong := [word for word in rest if "=" not in word or word.startswith("-") or "${" in word]:
        raise ConfigError(
            f"{path}: command: {wrong[0]} is neither --config FILE nor an override section.key=value"
        )
    return Base(file, tuple(rest))
