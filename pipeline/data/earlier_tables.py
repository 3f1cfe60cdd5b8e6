"""A sample table whose content changes: the earlier one is kept beside it, and what became of its test is said."""

from itertools import count
from pathlib import Path

import pandas as pd

from pipeline.common import console, files
from pipeline.common.errors import DataError
from pipeline.data import sample_table


def keep(samples_path: Path, new: pd.DataFrame) -> None:
    """Keep the table at `samples_path`, which `new` is about to replace, and say what has changed.

    Nothing is kept where there is no table, where it cannot be read, or where `new` has the same images, labels and
    splits.
    """
    try:
        earlier = sample_table.read(samples_path)
    except DataError:
        return
    if sample_table.digest(earlier) == sample_table.digest(new):
        return
    console.warn(f"{_changes(earlier, new)}; the earlier table is kept as {_kept(samples_path)}")


def _changes(earlier: pd.DataFrame, new: pd.DataFrame) -> str:
    """What has changed; pictures are told apart by their paths."""
    before, now = earlier.set_index("path")["split"], new.set_index("path")["split"]
    added, removed = len(now.index.difference(before.index)), len(before.index.difference(now.index))
    moved = int(now[now.index.isin(before.index[before == "test"])].isin(["train", "val"]).sum())
    what = (
        f"the pictures have changed (+{added:,}, -{removed:,})"
        if added or removed
        else "the sample table has changed, and the pictures are the same"
    )
    tests = {0: "no test picture of before is", 1: "1 test picture of before is"}
    return f"{what}: {tests.get(moved, f'{moved:,} test pictures of before are')} now in train or validation"


def _kept(samples_path: Path) -> Path:
    """The table under a second name: NAME.1.csv, or the next number that is free; one that was kept before stays."""
    content = samples_path.read_bytes()
    for number in count(1):
        path = samples_path.with_name(f"{samples_path.stem}.{number}{samples_path.suffix}")
        if not path.exists():
            with files.replacing(path) as part:
                part.write_bytes(content)
            return path
        if path.read_bytes() == content:
            return path
    raise AssertionError("numbers do not end")
