"""What a check hands to later checks, beside its finding. The `TrainingSetup` of the run is a product, too."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.prepare import Prepared
from pipeline.training.state import TrainState


@dataclass(frozen=True)
class RunData:
    """The run's own data, or random pictures that stand in for them."""

    config: Config
    """the configuration that opens them"""

    @cached_property
    def prepared(self) -> Prepared:
        """Table and store; a `DataError` where they cannot be opened."""
        return prepare.load(self.config)


@dataclass(frozen=True)
class OwnData(RunData):
    """The run's own data, in order."""


@dataclass(frozen=True)
class LoaderProcesses:
    """The loader processes of each rank, which have room for their batches."""

    count: int


@dataclass(frozen=True)
class StartStep:
    """The step (from 0) at which the run begins: 0, or that of its last checkpoint."""

    step: int


STEP_0 = StartStep(0)


@dataclass(frozen=True)
class PretrainedWeights:
    """Whether the run begins with pretrained weights, and they could be loaded."""

    available: bool


RANDOM_WEIGHTS = PretrainedWeights(available=False)


@dataclass(frozen=True)
class BuiltModel:
    """The state with which trial steps begin."""

    state: TrainState
    """as the run has it, on all ranks"""
    single_rank_state: TrainState
    """the same without anything that goes across ranks; in shards: `state`"""
    weights: dict[str, Any]
    """where the first weights come from"""


@dataclass(frozen=True)
class TriedModel(BuiltModel):
    """The same, once a pass of the true size and a step of each phase's optimizer have been tried."""


@dataclass(frozen=True)
class StepTiming:
    """One training step of this rank alone; in shards it is not taken: nan seconds, 0 images."""

    seconds: float
    images: int
