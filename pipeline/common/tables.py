"""Tables on the disk: CSV, whole or not at all."""

from pathlib import Path

import pandas as pd

from pipeline.common import files


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, whole or not at all."""
    with files.replacing(path) as part:
        table.to_csv(part, index=False)


def read_csv(path: Path) -> pd.DataFrame:
    """A table that `write_csv` wrote: an empty cell is missing, and every text is itself, also `NA` and `nan`."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])
