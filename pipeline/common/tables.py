"""Tables on the disk: CSV, whole or not at all."""

from pathlib import Path

import pandas as pd

from pipeline.common import files


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, whole or not at all."""
    with files.replacing(path) as part:
        table.to_csv(part, index=False)
