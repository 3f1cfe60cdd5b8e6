"""A sweep file of W&B, checked, and the run configurations of its trials.

The same file runs under `wandb sweep FILE; wandb agent ID` and under `python -m pipeline sweep FILE`. So it is read as
W&B reads it (YAML 1.1), and a trial's parameters become the arguments that W&B's agent puts for `${args_no_hyphens}`.
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

from pydantic import Field

from pipeline.common.errors import ConfigError
from pipeline.config.key_effects import NAMING_SECTIONS, effect_of
from pipeline.config.load import load_config, name_from_file, nearest_file, read_tree, validate_tree
from pipeline.config.schema import Config
from pipeline.config.types import Count, Section, expand_path
from pipeline.experiments.sweeps.parameter import Parameter, Value

FOLDER = Path("configs/sweeps")
BEST = "best.yaml"
ARGUMENTS = "${args_no_hyphens}"
COMMAND = (
    'program: pipeline, command: ["${env}", "${interpreter}", -m, "${program}", train, --config, FILE, "'
    f'{ARGUMENTS}"]'
)
METRICS = {"val_top1": "maximize", "val_loss": "minimize", "train_top1": "maximize", "train_loss": "minimize"}
MOST_COMBINATIONS = 1_000  # of a grid: each is checked before the first trial


class Metric(Section):
    """The value by which trials are compared."""

    name: str
    """KIND/NAME as in W&B: epoch/val_top1; the best epoch of a trial counts"""
    goal: Literal["minimize", "maximize"] = "minimize"
    """W&B's default is minimize"""


class EarlyTerminate(Section):
    """W&B's hyperband: at certain epochs only the best 1/eta of the trials go on."""

    type: Literal["hyperband"]
    min_iter: Count | None = None
    """the first of these epochs; each other is eta times the one before"""
    max_iter: Count | None = None
    """instead of min_iter: epochs of a whole trial, divided by eta, s times"""
    s: Count | None = None
    """with max_iter: number of such epochs"""
    eta: Annotated[int, Field(ge=2)] = 3

    @property
    def first_epoch(self) -> int:
        """The first epoch at which trials are ended."""
        if self.min_iter is not None:
            return self.min_iter
        assert self.max_iter is not None, "checked by `SweepPlan`"
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
    """The configuration file and the overrides that all trials have in common."""

    file: Path | None
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class SweepPlan:
    """A sweep file with the overrides of the command line; it makes the configurations of the trials."""

    path: Path
    overrides: tuple[str, ...] = ()
    previous: "SweepPlan | None" = None
    """the stage before; this one may begin with its best configuration"""

    @cached_property
    def sweep(self) -> Sweep:
        """The content of the file."""
        return validate_tree(read_tree(self.path, Sweep, "1.1"), str(self.path), Sweep)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters by dotted key."""
        where = f"{self.path}: parameters"
        return {
            key: validate_tree(_mapping(tree, f"{where}.{key}"), f"{where}.{key}", Parameter)
            for key, tree in self.sweep.parameters.items()
        }

    @cached_property
    def base(self) -> Base:
        """The base of the sweep file's command, its constants, and the overrides of the command line.

        W&B is disabled: it is for the trials of W&B's own agent.
        """
        file, overrides = _parse_command(self.path, self.sweep)
        constants = [f"{key}={p.value}" for key, p in self.parameters.items() if p.kind == "constant"]
        return Base(file, (*overrides, *constants, "tracking.wandb=disabled", *self.overrides))

    @cached_property
    def searched(self) -> dict[str, Parameter]:
        """The parameters that have more than one value."""
        return {key: p for key, p in self.parameters.items() if p.kind != "constant"}

    @cached_property
    def common(self) -> Config:
        """The configuration of a single training from the base."""
        file, overrides = self.existing_base()
        return load_config(file, [f"run.name={name_from_file(self.path)}", *overrides])

    @property
    def name(self) -> str:
        """The name of the sweep: `run.name` of the command line, or the name of the file."""
        return str(self.common.run.name)

    @property
    def folder(self) -> Path:
        """The folder of all files of the sweep."""
        return self.common.run.root / "sweeps" / self.name

    @property
    def metric(self) -> str:
        """The name of the metric in the log's records of epochs."""
        return self.sweep.metric.name.partition("/")[2]

    @property
    def maximised(self) -> bool:
        """Whether a higher metric is better."""
        return self.sweep.metric.goal == "maximize"

    def run_dir(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.folder / trial_name(number)

    def config(self, number: int, values: Mapping[str, Value]) -> Config:
        """The run configuration of a trial.

        Raises:
            ConfigError: the values do not fit together.
        """
        group = self.common.tracking.group or self.name
        searched = [f"{key}={value}" for key, value in values.items()]
        identity = [f"run.root={self.folder}", f"run.name={trial_name(number)}", f"tracking.group={group}"]
        overrides = [*self.base.overrides, *searched, *identity, "train.resume=auto"]
        return load_config(self.base.file, overrides)

    def grid(self) -> list[dict[str, Value]]:
        """All combinations, in the file's order."""
        values = [p.grid_values for p in self.searched.values()]
        return [dict(zip(self.searched, chosen, strict=True)) for chosen in itertools.product(*values)]

    def definition(self, pruner: str | None) -> dict[str, Any]:
        """What the sweep is, as plain types; `definition.py` says what of it must not change until it is finished."""
        common = self.common.model_dump(mode="json")
        sweep = {**self.sweep.model_dump(mode="json"), "run_cap": None}
        return {"sweep": sweep, "pruner": pruner, "config": {**common, **NAMING_SECTIONS}}

    def check(self) -> None:
        """Find every mistake that can be found before the first trial.

        Raises:
            ConfigError: the file or the base configuration is wrong, or a trial made from them.
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
        for override in self.overrides:
            if (key := override.partition("=")[0]) in self.searched:
                raise ConfigError(
                    f"{self.path}: {key} is searched; drop {override}, or take {key} out of the parameters"
                )
        if self.sweep.method == "grid":
            self._check_grid()
        file, overrides = self.existing_base()
        for values in self._samples():
            searched = [f"{key}={value}" for key, value in values.items()]
            try:
                load_config(file, [*overrides, *searched])
            except ConfigError as error:
                raise ConfigError(f"{self.path}: a trial with {' '.join(searched)}: {error}") from None

    def existing_base(self) -> Base:
        """The base; while the previous stage has not written its best configuration, that stage's base instead."""
        previous = self.previous
        if previous is not None and self.base.file == previous.folder / BEST and not self.base.file.exists():
            earlier = previous.existing_base()
            return Base(earlier.file, (*earlier.overrides, *self.base.overrides))
        return self.base

    def _check_metric(self) -> None:
        kind, _, name = self.sweep.metric.name.partition("/")
        where = f"{self.path}: metric"
        known = [f"epoch/{metric}" for metric in METRICS]
        if kind == "test" or name.startswith("test"):
            raise ConfigError(f"{where}.name: the test split never chooses; take epoch/val_top1")
        if kind != "epoch" or name not in METRICS:
            near = difflib.get_close_matches(self.sweep.metric.name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(
                f"{where}.name: {self.sweep.metric.name} is not one of an epoch's values; {hint}"
            )
        if self.sweep.metric.goal != METRICS[name]:
            raise ConfigError(
                f"{where}.goal: {self.sweep.metric.goal} (W&B's default is minimize) would look for the worst "
                f"{name}; write goal: {METRICS[name]}"
            )
        if name.startswith("val") and (why := self.common.why_no_validation) is not None:
            raise ConfigError(f"{where}.name: {name} needs validation, and {why}")

    def _check_stopping(self) -> None:
        rule = self.sweep.early_terminate
        if rule is not None and (rule.min_iter is None) == (rule.max_iter is None):
            raise ConfigError(f"{self.path}: early_terminate: give one of min_iter, and max_iter with s")

    def _check_grid(self) -> None:
        if infinite := [key for key, p in self.searched.items() if not p.is_finite]:
            raise ConfigError(
                f"{self.path}: parameters.{infinite[0]}: a grid needs values, or whole numbers from min to max"
            )
        count = math.prod(p.count for p in self.searched.values())
        if count > MOST_COMBINATIONS:
            raise ConfigError(
                f"{self.path}: the grid has {count:,} combinations; at most {MOST_COMBINATIONS:,}"
            )

    def _samples(self) -> Iterator[dict[str, Value]]:
        """All combinations of a grid; else each parameter at each of its `extremes`, the others at their first."""
        if self.sweep.method == "grid":
            yield from self.grid()
            return
        first = {key: p.extremes[0] for key, p in self.searched.items()}
        for key, p in self.searched.items():
            for value in p.extremes:
                yield {**first, key: value}


def trial_name(number: int) -> str:
    """`trial-007`."""
    return f"trial-{number:03d}"


def load_plans(path: Path, overrides: Sequence[str]) -> list[SweepPlan]:
    """The sweep of a file, or the stages of a folder by name; all are checked.

    Raises:
        ConfigError: there is no such sweep, or one of them is wrong.
    """
    stages = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not stages or not stages[0].is_file():
        known = sorted(known for known in FOLDER.glob("*") if known.exists())
        near = nearest_file(path, known)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(map(str, known)) or 'none'}"
        raise ConfigError(f"{path}: neither a sweep file nor a folder of them; {hint}")
    if len(stages) > 1 and any(override.startswith("run.name=") for override in overrides):
        raise ConfigError(
            f"{path}: run.name names one sweep, and these are {len(stages)}; give their files one by one"
        )
    plans: list[SweepPlan] = []
    for stage in stages:
        plans.append(SweepPlan(stage, tuple(overrides), plans[-1] if plans else None))
        plans[-1].check()
    return plans


def _mapping(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: holds {type(tree).__name__}; it is made of keys with values")
    return tree


def _parse_command(path: Path, sweep: Sweep) -> Base:
    """The configuration file and the overrides in a sweep's command."""
    command = [sweep.program if part == "${program}" else part for part in sweep.command]
    verb = command.index("train") if "train" in command else 0
    if command[max(0, verb - 2) : verb] != ["-m", "pipeline"] or command[-1] != ARGUMENTS:
        raise ConfigError(f"{path}: command: has to be a training that ends with the parameters: {COMMAND}")
    arguments = command[verb + 1 : -1]
    file = None
    if "--config" in arguments[:-1]:
        option = arguments.index("--config")
        try:
            file = expand_path(Path(arguments[option + 1]))
        except ValueError as error:
            raise ConfigError(f"{path}: command: {error}") from None
        del arguments[option : option + 2]
    if wrong := [part for part in arguments if "=" not in part or part.startswith("-") or "${" in part]:
        raise ConfigError(
            f"{path}: command: {wrong[0]} is neither --config FILE nor an override section.key=value"
        )
    return Base(file, tuple(arguments))
