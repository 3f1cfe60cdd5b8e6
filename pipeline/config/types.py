"""Types that sections share: numbers in a range, and a section itself."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]


Share = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[float, Field(gt=0)]


NotNegative = Annotated[float, Field(ge=0)]


Count = Annotated[int, Field(ge=1)]


Scalar = bool | int | float | str


class Section(BaseModel):
    """A section of the configuration; the text below a field is its documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


Options = dict[str, Scalar | tuple[int, ...] | tuple[float, ...]]
