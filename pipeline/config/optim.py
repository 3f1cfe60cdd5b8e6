"""`optim` and `schedule`: the optimizer, its phases, and the schedules of learning rate and momentum."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.config.types import Count, Fraction, NotNegative, Options, Positive, Section, Share

# The schedule


class _Schedule(Section):
    warmup_epochs: NotNegative = 0.0
    """epochs of a linear rise of the learning rate from 0"""
    momentum_warmup_epochs: NotNegative = 0.0
    """epochs of a linear rise of the momentum to optim.momentum"""
    momentum_start: Fraction = 0.0
    """momentum at the first step of that rise"""

    def too_long(self, epochs: int) -> Iterator[tuple[str, float]]:
        """The keys, with their values in epochs, that a training of `epochs` ends too early for."""
        for key in ("warmup_epochs", "momentum_warmup_epochs"):
            if (value := getattr(self, key)) > epochs:
                yield key, value


class Constant(_Schedule):
    name: Literal["constant"] = "constant"


class Step(_Schedule):
    name: Literal["step"] = "step"
    every_epochs: Count = 30
    """epochs between two drops of the learning rate"""
    gamma: Positive = 0.1
    """factor of the learning rate at every drop"""

    def too_long(self, epochs: int) -> Iterator[tuple[str, float]]:
        yield from super().too_long(epochs)
        if self.every_epochs >= epochs:
            yield "every_epochs", self.every_epochs


class MultiStep(_Schedule):
    name: Literal["multi_step"] = "multi_step"
    milestones: tuple[Count, ...] = (30, 60)
    """epochs at which the learning rate drops"""
    gamma: Positive | tuple[Positive, ...] = 0.1
    """factor of the learning rate at every drop, or a list with one for each milestone"""

    @model_validator(mode="after")
    def _check(self) -> "MultiStep":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise, and are {list(self.milestones)}")
        if isinstance(self.gamma, tuple) and len(self.gamma) != len(self.milestones):
            raise ValueError(
                f"gamma has {len(self.gamma)} factors for {len(self.milestones)} milestones; "
                "give one number, or a factor for each milestone"
            )
        return self

    def too_long(self, epochs: int) -> Iterator[tuple[str, float]]:
        yield from super().too_long(epochs)
        if self.milestones and self.milestones[-1] >= epochs:
            yield "milestones", self.milestones[-1]


class Exponential(_Schedule):
    name: Literal["exponential"] = "exponential"
    gamma: Positive = 0.95
    """factor of the learning rate per epoch"""


class Cosine(_Schedule):
    name: Literal["cosine"] = "cosine"
    final_factor: Share = 0.0
    """learning rate at the end, relative to optim.lr"""
    restart_epochs: Positive | None = None
    """epochs of the first cycle; null: one cycle until the end"""
    restart_multiplier: Annotated[float, Field(ge=1)] = 1.0
    """length of a cycle, relative to the cycle before"""

    def too_long(self, epochs: int) -> Iterator[tuple[str, float]]:
        yield from super().too_long(epochs)
        if self.restart_epochs is not None and self.restart_epochs > epochs:
            yield "restart_epochs", self.restart_epochs


class OneCycle(_Schedule):
    name: Literal["one_cycle"] = "one_cycle"
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """share of the training over which the learning rate rises to optim.lr (torch's pct_start)"""
    initial_factor: Share = 0.04
    """learning rate at the beginning, relative to optim.lr"""
    final_factor: Share = 4e-6
    """learning rate at the end, relative to optim.lr"""
    momentum_low: Fraction = 0.85
    """momentum where the learning rate is highest; at both ends it is optim.momentum"""


class Polynomial(_Schedule):
    name: Literal["polynomial"] = "polynomial"
    power: Positive = 1.0
    """exponent of the decay; 1: linear"""
    final_factor: Share = 0.0
    """learning rate at the end, relative to optim.lr"""


class ReduceOnPlateau(_Schedule):
    name: Literal["plateau"] = "plateau"
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """factor of the learning rate at every drop"""
    patience_epochs: Annotated[int, Field(ge=0)] = 10
    """consecutive epochs without a lower validation loss that are tolerated; the next one drops the learning rate"""
    threshold: Fraction = 1e-4
    """smallest relative decrease of the validation loss that counts as lower"""
    cooldown_epochs: Annotated[int, Field(ge=0)] = 0
    """epochs after a drop that do not count"""
    min_factor: Share = 0.0
    """lowest learning rate, relative to optim.lr"""


def _schedule_name(value: Any) -> str:
    """The name of a schedule; without one it is cosine."""
    name = value.get("name", "cosine") if isinstance(value, dict) else getattr(value, "name", "cosine")
    return str(name)


ScheduleConfig = Annotated[
    Annotated[Constant, Tag("constant")]
    | Annotated[Step, Tag("step")]
    | Annotated[MultiStep, Tag("multi_step")]
    | Annotated[Exponential, Tag("exponential")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[OneCycle, Tag("one_cycle")]
    | Annotated[Polynomial, Tag("polynomial")]
    | Annotated[ReduceOnPlateau, Tag("plateau")],
    Discriminator(_schedule_name),
]


# The optimizer and its phases


class PlateauRule(Section):
    """A phase ends when the validation loss has not fallen for some epochs."""

    name: Literal["plateau"] = "plateau"
    epochs: Count = 3
    """consecutive epochs without a lower validation loss that end the phase"""
    min_delta: NotNegative = 0.0
    """smallest decrease of the validation loss that counts as lower, in nats"""


class SwatsRule(Section):
    """A phase of Adam ends when its steps, projected on the gradient, agree on one learning rate for SGD."""

    name: Literal["swats"] = "swats"
    tolerance: Positive = 1e-9
    """largest difference of a step's projected learning rate from the running mean (Keskar & Socher 2017: 1e-9)"""


def _rule_name(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("name", "plateau"))
    return str(getattr(value, "name", "epoch"))


Until = Annotated[
    Annotated[Count, Tag("epoch")]
    | Annotated[PlateauRule, Tag("plateau")]
    | Annotated[SwatsRule, Tag("swats")],
    Discriminator(_rule_name),
]


class Phase(Section):
    """A part of the training with its own optimizer; values that are null are those of `optim`."""

    name: str = "sgd"
    """optimizer, as in optim.name"""
    lr: Positive | None = None
    """peak learning rate; null: optim.lr, or after a swats phase the rate that SWATS proposes"""
    momentum: Fraction | None = None
    """as in optim.momentum"""
    nesterov: bool | None = None
    """as in optim.nesterov"""
    weight_decay: NotNegative | None = None
    """as in optim.weight_decay"""
    options: Options = Field(default_factory=dict)
    """extra arguments of this optimizer; phases do not use optim.options"""
    schedule: ScheduleConfig | None = None
    """schedule over this phase, from its first step; null: the run's schedule over the whole run"""
    until: Until | None = None
    """last epoch of the phase, or a rule that ends it: {name: plateau, epochs: 3} or {name: swats}; null: the end"""
    carry_momentum: bool = False
    """SGD's momentum starts from the previous optimizer's mean gradient; false: from 0"""

    @model_validator(mode="after")
    def _check(self) -> "Phase":
        if self.carry_momentum and self.name != "sgd":
            raise ValueError(f"carry_momentum is for sgd, and the phase's optimizer is {self.name}")
        return self


@dataclass(frozen=True)
class ResolvedPhase:
    """A phase with its values from `optim` filled in."""

    name: str
    lr: float | None
    """peak learning rate; None: SWATS proposes it when the phase before ends"""
    momentum: float
    nesterov: bool
    weight_decay: float
    options: Options
    schedule: ScheduleConfig | None
    """over this phase; None: the run's schedule"""
    until: int | PlateauRule | SwatsRule | None
    carry_momentum: bool


class OptimConfig(Section):
    name: str = "sgd"
    """optimizer: sgd, adagrad, rmsprop, adadelta, adam, adamw, or any other of timm"""
    lr: Positive = 0.025
    """peak learning rate, for a step of effective_batch_size images"""
    momentum: Fraction = 0.9
    """momentum of SGD and of others that have one (not rmsprop), or beta1 of the Adam family"""
    nesterov: bool = True
    """Nesterov's momentum for SGD"""
    weight_decay: NotNegative = 5e-4
    """L2 penalty on weights (decoupled in adamw), except norms, biases and parameters that timm exempts"""
    options: Options = Field(default_factory=dict)
    """extra arguments of the optimizer, such as {betas: [0.9, 0.95]}"""
    phases: tuple[Phase, ...] = ()
    """successive optimizers, such as Adam, then SGD; []: the optimizer above for the whole run"""
    batch_size: Count | Literal["auto"] = 64
    """images per forward and backward pass, over all ranks; auto: as many as fit into memory"""
    effective_batch_size: Count | None = None
    """images per optimizer step; gradients of several batches are accumulated; null: batch_size"""
    head_lr_multiplier: Positive = 1.0
    """learning rate of the new layers, relative to the others"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """learning rate of a layer, relative to the layer above it"""
    frozen_stages: Annotated[int, Field(ge=0)] = 0
    """number of leading stages whose weights are frozen; 1: the stem"""
    unfreeze_epoch: Count | None = None
    """last epoch in which those stages are frozen; null: always frozen"""
    clip_norm: Positive | None = None
    """largest norm of the gradient over all weights; null: not clipped"""

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if self.batch_size == "auto" and self.effective_batch_size is None:
            raise ValueError("batch_size=auto needs effective_batch_size, the images of an optimizer step")
        if isinstance(self.batch_size, int) and self.images_per_step < self.batch_size:
            raise ValueError(
                f"effective_batch_size {self.images_per_step} is below batch_size {self.batch_size}"
            )
        ends = [phase.until for phase in self.phases]
        if any(end is None for end in ends[:-1]) or (ends and ends[-1] is not None):
            raise ValueError("phases: every phase but the last needs `until`, and the last must have none")
        epochs = [end for end in ends if isinstance(end, int)]
        if epochs != sorted(set(epochs)):
            raise ValueError(f"phases: the epochs of `until` must rise, and are {epochs}")
        return self

    @property
    def images_per_step(self) -> int:
        """Images of an optimizer step, over all ranks."""
        images = self.effective_batch_size or self.batch_size
        assert images != "auto", "the validator asks for effective_batch_size"
        return images

    @cached_property
    def resolved_phases(self) -> tuple[ResolvedPhase, ...]:
        """The phases, or `optim` itself as the only one."""
        phases = self.phases or (Phase(name=self.name, options=self.options),)
        rules = (None, *(phase.until for phase in phases))
        return tuple(self._resolve(phase, before) for before, phase in zip(rules, phases, strict=False))

    def _resolve(self, phase: Phase, rule_before: Any) -> ResolvedPhase:
        values = {key: getattr(phase, key) for key in Phase.model_fields}
        for key in ("lr", "momentum", "nesterov", "weight_decay"):
            if values[key] is None and not (key == "lr" and isinstance(rule_before, SwatsRule)):
                values[key] = getattr(self, key)
        return ResolvedPhase(**values)

    def __copy__(self) -> "OptimConfig":  # `model_copy` may change what the phases were resolved from
        copy = super().__copy__()
        copy.__dict__.pop("resolved_phases", None)
        return copy
