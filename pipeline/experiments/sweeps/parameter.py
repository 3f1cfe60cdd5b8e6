"""A parameter of a sweep file in W&B's terms, and its distribution in Optuna.

Distributions that Optuna does not have (normal, beta, weighted values, ...) are refused.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.types import Positive, Section

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = bool | int | float | str

RANGES = {
    "int_uniform": "whole numbers",
    "uniform": "numbers",
    "q_uniform": "numbers, rounded to multiples of q",
    "log_uniform_values": "numbers, uniform in their logarithm",
    "q_log_uniform_values": "the same, rounded to multiples of q",
    "log_uniform": "exp(min) to exp(max), uniform in the logarithm",
    "q_log_uniform": "the same, rounded to multiples of q",
}
KINDS = ("constant", "categorical", *RANGES)


def _number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        raise ValueError(f"{value} is text in YAML 1.1, which W&B reads; write {_with_point(number)}")
    return value


def _with_point(number: float) -> str:
    """A number as YAML 1.1 reads it: 1.0e-4."""
    mantissa, e, exponent = repr(number).partition("e")
    return f"{mantissa}{'' if '.' in mantissa else '.0'}{e}{exponent}"


Number = Annotated[int | float, BeforeValidator(_number)]


class Parameter(Section):
    """The keys of a parameter in W&B's format."""

    distribution: str | None = None
    """null: by the other keys, as in W&B"""
    value: Any = None
    values: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    min: Number | None = None
    max: Number | None = None
    q: Positive = 1
    mu: Any = None
    sigma: Any = None
    a: Any = None
    b: Any = None
    probabilities: Any = None
    parameters: Any = None

    @model_validator(mode="after")
    def _known(self) -> "Parameter":
        if self.parameters is not None:
            raise ValueError(
                "nested parameters would replace the whole section in W&B's agent; write dotted keys, such as optim.lr"
            )
        if self.kind not in KINDS:
            raise ValueError(
                f"distribution {self.kind} cannot be drawn here (Optuna has none); there are {', '.join(KINDS)}"
            )
        needed = {"constant": ("value",), "categorical": ("values",)}.get(self.kind, ("min", "max"))
        if missing := [name for name in needed if name not in self.model_fields_set]:
            raise ValueError(f"a {self.kind} parameter needs {missing[0]}")
        allowed = {"distribution", *needed, *(["q"] if self.kind.startswith("q_") else [])}
        if foreign := sorted(self.model_fields_set - allowed):
            raise ValueError(f"a {self.kind} parameter has no {foreign[0]}")
        for value in (
            (self.values or ()) if self.kind == "categorical" else (self.value,) * (self.kind == "constant")
        ):
            _override_value(value)
        if self.kind in RANGES:
            self._check_range()
        return self

    def _check_range(self) -> None:
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"min {self.min} has to be below max {self.max}")
        if self.kind == "int_uniform" and not (isinstance(self.min, int) and isinstance(self.max, int)):
            raise ValueError("int_uniform needs whole numbers as min and max")
        if self.logarithmic and low <= 0:
            raise ValueError(
                f"min {self.min} has to be above 0; log_uniform_values takes the values, log_uniform their logarithms"
            )
        if self.kind.startswith("q_") and math.floor(high / self.q) < math.ceil(low / self.q):
            raise ValueError(f"there is no multiple of q {self.q:g} from {low:g} to {high:g}")

    @property
    def kind(self) -> str:
        """The distribution; where none is named, the one that W&B takes."""
        if self.distribution is not None:
            return self.distribution
        if "value" in self.model_fields_set:
            return "constant"
        if self.values is not None:
            return "categorical" if self.probabilities is None else "categorical_w_probabilities"
        return "int_uniform" if isinstance(self.min, int) and isinstance(self.max, int) else "uniform"

    @property
    def logarithmic(self) -> bool:
        """Whether it is uniform in its logarithm."""
        return "log_" in self.kind

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value of a range."""
        assert self.min is not None and self.max is not None, "checked by `_known`"
        exponents = self.kind in ("log_uniform", "q_log_uniform")
        return (math.exp(self.min), math.exp(self.max)) if exponents else (self.min, self.max)

    @property
    def choices(self) -> tuple[Value, ...]:
        """The values of a categorical parameter; a list is text, as on a command line."""
        return tuple(_override_value(value) for value in self.values or ())

    @property
    def is_finite(self) -> bool:
        """Whether a grid can enumerate its values."""
        return self.kind in ("categorical", "int_uniform")

    @property
    def count(self) -> int:
        """The number of values of a finite parameter."""
        low, high = (1, len(self.choices)) if self.kind == "categorical" else self.bounds
        return int(high) - int(low) + 1

    @property
    def grid_values(self) -> tuple[Value, ...]:
        """All values of a finite parameter."""
        if self.kind == "categorical":
            return self.choices
        low, high = self.bounds
        return tuple(range(int(low), int(high) + 1))

    @property
    def extremes(self) -> tuple[Value, ...]:
        """All values of a categorical parameter; the lowest and the highest of a range."""
        return self.choices or tuple(map(self.rounded, self.bounds))

    def rounded(self, drawn: Any) -> Value:
        """A drawn value, rounded to a multiple of `q` within the range where the distribution says so."""
        if not self.kind.startswith("q_"):
            return drawn  # type: ignore[no-any-return]
        low, high = self.bounds
        times = min(max(round(drawn / self.q), math.ceil(low / self.q)), math.floor(high / self.q))
        return int(times * self.q) if float(self.q).is_integer() else round(times * self.q, 12)

    def optuna_distribution(self) -> "BaseDistribution":
        """The distribution in Optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "categorical":
            return CategoricalDistribution(self.choices)
        low, high = self.bounds
        if self.kind == "int_uniform":
            return IntDistribution(int(low), int(high))
        return FloatDistribution(low, high, log=self.logarithmic)


def _override_value(value: Any) -> Value:
    """The value of an override on the command line."""
    if value is None or (isinstance(value, dict | list) and "None" in str(value)):
        raise ValueError(
            "null reaches the command as the text None; leave the key to the configuration instead"
        )
    return str(value) if isinstance(value, dict | list) else value
