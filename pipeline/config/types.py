"""Types that sections share: numbers in a range, paths, and a section itself."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]


Share = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[float, Field(gt=0)]


NotNegative = Annotated[float, Field(ge=0)]


Count = Annotated[int, Field(ge=1)]


Scalar = bool | int | float | str


def expand_path(path: Path) -> Path:
    """A path with `~` or `~USER` at its start expanded; a shell does so only in some places of a command line.

    Raises:
        ValueError: it holds a "$", which nobody expands here, or its home folder is not known.
    """
    if "$" in str(path):
        raise ValueError(f'{path} holds "$", and variables are not expanded here; write the path itself')
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"the home folder of {path} is not known; write the path itself") from None


UserPath = Annotated[Path, AfterValidator(expand_path)]


def _expand_file(choice: str) -> str:
    """A word such as "best", or the path of a file, expanded."""
    return str(expand_path(Path(choice))) if "/" in choice else choice


WordOrPath = Annotated[str, AfterValidator(_expand_file)]
"""a word such as "best", or the path of a file: what holds a "/" """


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
