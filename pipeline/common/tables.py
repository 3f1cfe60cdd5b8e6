"""Tables on the disk: CSV, whole or not at all."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common import files
from pipeline.common.errors import DataError

NAMES = ("class_name", "predicted_name", "suggested_name", "train_class_name", "class_a", "class_b")
"""columns of class names, which are text: also 007, 1e5 and true"""


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, whole or not at all."""
    with files.replacing(path) as part:
        table.to_csv(part, index=False)


def read_csv(
    path: Path, types: Mapping[Hashable, Any] | None = None, advice: str = files.RESTORE
) -> pd.DataFrame:
    """A table that `write_csv` wrote: an empty cell is missing, and every text is itself, also `NA` and `nan`.

    Args:
        types: of columns that have to be there.
        advice: what to do when the file is damaged.

    Raises:
        DataError: the file is not a table, lacks a column, or holds a value of another type.
    """
    with path.open("rb") as stream:
        try:
            dtypes: dict[Hashable, Any] = {**dict.fromkeys(NAMES, str), **(types or {})}
            table = pd.read_csv(stream, dtype=dtypes, keep_default_na=False, na_values=[""])
        except (ValueError, OverflowError) as error:  # pandas' own errors of reading are ValueErrors
            raise DataError(
                f"{path}: damaged, or not a table ({' '.join(str(error).split())}); {advice}"
            ) from error
    if missing := [name for name in types or {} if name not in table.columns]:
        raise DataError(f"{path}: damaged: the columns {missing} are missing; {advice}")
    return table
