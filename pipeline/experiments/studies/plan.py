"""A study file: a question, the runs that answer it, and the figure of the answer.

It names a run configuration and what is varied: arms, each under every condition and with every seed.
`StudyPlan` turns it into a list of ordinary run configurations.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.common import files
from pipeline.common.errors import ConfigError
from pipeline.config.load import load_config, nearest_file, read_tree, validate_tree
from pipeline.config.schema import Config
from pipeline.config.types import Positive, Section, UserPath

FOLDER = Path("configs/studies")
NAME = re.compile(r"[\w][\w.]*")  # of arms and conditions: parts of the runs' names
Overrides = tuple[str, ...]


class Study(Section):
    """The content of a study file."""

    title: str
    """the question"""
    show: Literal["curves", "depth", "optimizers", "batch_norm", "parity"]
    """which figure is drawn; batch_norm and parity also measure the trained networks"""
    base: UserPath
    """the run configuration that is varied; `train` runs it, too"""
    overrides: Overrides = ()
    """overrides of every run, such as [train.epochs=5]"""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """each arm runs with each of them"""
    arms: dict[str, Overrides]
    """what is compared: names with their overrides, such as {residual: [], plain: [model.options.residual=false]}"""
    conditions: dict[str, Overrides] = Field(default={"": ()})
    """circumstances of the comparison, such as {batch64: [optim.batch_size=64]}; none: the arms as they are"""
    tune_lr: dict[str, tuple[Positive, ...]] = Field(default={})
    """learning rates (of the last phase) that an arm tries with the first seed; its reported runs take the one
    with the best validation"""

    @model_validator(mode="after")
    def _agree(self) -> "Study":
        for kind, names in (("arms", self.arms), ("conditions", self.conditions)):
            if wrong := [name for name in names if name and not NAME.fullmatch(name)]:
                raise ValueError(f"{kind}: {wrong[0]!r} may have only letters, digits, _ and .")
        if not self.arms or "" in self.arms:
            raise ValueError("arms: give at least one, each with a name")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} holds one twice")
        if unknown := [name for name in self.tune_lr if name not in self.arms]:
            raise ValueError(f"tune_lr: {unknown[0]} is not one of the arms, {', '.join(self.arms)}")
        if self.tune_lr and len(self.conditions) > 1:
            raise ValueError("tune_lr: an arm is tuned once; give no conditions")
        return self


@dataclass(frozen=True)
class Member:
    """One run of a study."""

    arm: str
    condition: str
    seed: int
    config: Config
    lr: float | None = None
    """the learning rate that it tries, or that was chosen by such runs"""

    @property
    def name(self) -> str:
        """The name of its run directory."""
        return str(self.config.run.name)

    @cached_property
    def digest(self) -> str:
        """The digest of all its settings."""
        return files.digest_of(self.config.model_dump(mode="json"))


class StudyPlan:
    """A study with the overrides of the command line; it makes the configurations of the runs.

    path: of the study file, for messages; folder: of the runs and of what is made of them.

    Raises:
        ConfigError: the study file, the run configuration or an override is wrong.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self.path, self.name, self.overrides = path, path.stem, overrides
        self.study = validate_tree(read_tree(path, Study), str(path), Study)
        self.folder = load_config(self.study.base, overrides).run.root / "studies" / self.name

    def tuning_members(self) -> list[Member]:
        """The runs that try learning rates, with the first seed."""
        seed = self.study.seeds[0]
        return [
            self._member(arm, "", seed, f"tune-{arm}-lr{lr:g}", lr)
            for arm, lrs in self.study.tune_lr.items()
            for lr in lrs
        ]

    def members(self, chosen: dict[str, float]) -> list[Member]:
        """The runs that are reported; `chosen`: the learning rate of each tuned arm."""
        study = self.study
        return [
            self._member(arm, condition, seed, f"{arm}{dash}{condition}-seed{seed}", chosen.get(arm))
            for condition in study.conditions
            for arm in study.arms
            for seed in study.seeds
            for dash in ["-" if condition else ""]
        ]

    def _member(self, arm: str, condition: str, seed: int, name: str, lr: float | None) -> Member:
        study = self.study
        overrides = [
            *study.overrides,
            *study.arms[arm],
            *study.conditions[condition],
            *self.overrides,
            f"seed={seed}",
            "report.write=false",
            f"run.root={self.folder}",
            f"run.name={name}",
        ]
        try:
            config = load_config(study.base, overrides)
            if lr is not None:
                phases = len(config.optim.phases)
                key = f"optim.phases.{phases - 1}.lr" if phases else "optim.lr"
                config = load_config(study.base, [*overrides, f"{key}={lr!r}"])
            return Member(arm, condition, seed, config, lr)
        except ConfigError as error:
            under = f", condition {condition}" if condition else ""
            raise ConfigError(f"{self.path}: arm {arm}{under}: {error}") from error


class RepeatPlan(StudyPlan):
    """The study of one arm, a run configuration, with several seeds; it has the name of the run."""

    def __init__(self, path: Path, seeds: Sequence[int], overrides: Sequence[str] = ()) -> None:
        """Raises: ConfigError: the run configuration or an override is wrong."""
        run = load_config(path, overrides).run
        self.path, self.name, self.overrides = path, str(run.name), overrides
        self.study = Study(
            title=f"{self.name}, seeds {', '.join(map(str, seeds))}",
            show="curves",
            base=path,
            seeds=tuple(seeds),
            arms={re.sub(r"[^\w.]", "_", self.name): ()},
        )
        self.folder = run.root / "repeats" / self.name


def find(name: str) -> list[Path]:
    """The study files of a name, a path or "all".

    Raises:
        ConfigError: there is no such study.
    """
    known = sorted(study for study in FOLDER.glob("*.yaml") if study.exists())
    if name == "all" and known:
        return known
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        names = [study.stem for study in known]
        near = nearest_file(path, known)
        hint = f"did you mean {near.stem}?" if near else f"there are {', '.join(names) or 'none'}, and all"
        raise ConfigError(f"study: {path} is not a study file; {hint}")
    return [path]
