"""What the sources of a user's own pictures share: where they lie, and what makes a set of classes unusable.

A folder or table of the user's is only read; what is made from it lies below `data.root`. The folder below `data.root`
is found again when the user's is moved, renamed or not mounted, see `given_folder`.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pipeline.common.errors import DataError, name_some
from pipeline.data import sample_table
from pipeline.data.sample_table import EITHER
from pipeline.data.sources.base import GivenFolder

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""what a split may be called, whatever the case"""
LONGEST_SHOWN = 300  # letters; names of files have 255 bytes
BOX = ["box_x", "box_y", "box_w", "box_h"]


class OwnPictures(GivenFolder):
    """A data set of the user's at `data.path`."""

    @property
    def given(self) -> Path:
        """The folder or the table that the user named."""
        assert self.config.path is not None, "the configuration asks for data.path"
        return self.config.path

    @property
    def expected(self) -> tuple[int, int, int]:
        """As listed now; of a test that is to be drawn its share."""
        table = self.read(self.find_root(self.config.root / self.folder_name / "raw"))
        counts = table["official"].value_counts()
        drawn = round(self.config.test_fraction * counts.get(EITHER, 0))
        test = int(counts.get("test", 0)) + drawn
        return table["label"].nunique(), len(table) - test, test

    def check_root_is_outside(self) -> None:
        """Raise a `DataError` where `data.root` lies in the given folder."""
        if self.config.root.resolve().is_relative_to(self.given.resolve()):
            raise DataError(
                f"{self.given}: data.root ({self.config.root}) lies in it, and nothing is written into a folder of "
                "yours; set data.root to a folder outside of it"
            )


def finish(rows: pd.DataFrame) -> pd.DataFrame:
    """Add what a sample table needs and a list of pictures lacks: labels in the order of the names, ids from 1, boxes.

    Args:
        rows: path, class_name, official; perhaps id, boxes and group.
    """
    names = sorted(set(rows["class_name"]))
    table = rows.assign(label=rows["class_name"].map({name: label for label, name in enumerate(names)}))
    if "id" not in table:
        table["id"] = range(1, len(table) + 1)
    table[[name for name in BOX if name not in table]] = float("nan")
    group = ["group"] if "group" in table else []
    return table.astype({"label": "int64", "id": "int64"})[[*sample_table.SOURCE_COLUMNS, *group]]


def refuse(where: Path, problems: Iterable[str]) -> None:
    """Raise one `DataError` for all problems, each "what; what to do next"."""
    if found := list(problems):
        raise DataError(f"{where}: " + f"\n{where}: ".join(found))


def check_classes(table: pd.DataFrame, where: Path, test_fraction: float) -> None:
    """Raise a `DataError` where classes are missing in a split or have too little to be told apart and tested.

    Args:
        test_fraction: of the pictures that the user has not split; 0: no test is drawn.
    """
    sample_table.check_learnable(table, where)
    named = {
        split: set(table.loc[table["official"] == split, "class_name"]) for split in ("train", "val", "test")
    }
    taught = named["train"] | set(table.loc[table["official"] == EITHER, "class_name"])
    problems = []
    for split in ("val", "test"):
        if untaught := sorted(named[split] - taught):
            problems.append(
                f"{split} has classes that train lacks: {shown(untaught)}; put pictures of each into train, or leave "
                "these classes out"
            )
    if named["test"] and (untested := sorted(taught - named["test"])):
        problems.append(
            f"test lacks classes that train has: {shown(untested)}; put pictures of each into test, leave these "
            "classes out, or give no test at all, and one is drawn (data.test_fraction)"
        )
    if test_fraction:
        problems += _too_small(table[table["official"] == EITHER], test_fraction)
    refuse(where, problems)


def _too_small(table: pd.DataFrame, test_fraction: float) -> list[str]:
    """Classes of which no test can be drawn: one picture, or one group."""
    units = table["id"].astype(str)
    if "group" in table:
        units = units.where(table["group"] == "", "group " + table["group"])
    counts = units.groupby(table["class_name"]).nunique()
    lonely = sorted(counts.index[counts < 2])
    what = "group of pictures" if "group" in table else "picture"
    return lonely and [
        f"one {what} alone of {shown(lonely)}, so none is left to test (data.test_fraction={test_fraction:g}); add "
        "pictures, leave these classes out, or set data.test_fraction=0 to train without a test"
    ]


def twins(names: Iterable[str]) -> list[str]:
    """Names that differ in case, in the composition of accents or in outer spaces only: "Crow / crow"."""
    spellings: dict[str, set[str]] = {}
    for name in names:
        spellings.setdefault(unicodedata.normalize("NFC", name).strip().casefold(), set()).add(name)
    return [" / ".join(map(quoted, sorted(each))) for each in spellings.values() if len(each) > 1]


def unwritable(names: Iterable[str]) -> list[str]:
    """Names that a table cannot hold: not UTF-8, or with a carriage return or a zero byte."""
    return [
        name for name in names if any(letter in "\r\0" or "\ud800" <= letter <= "\udfff" for letter in name)
    ]


def shown(names: Iterable[str]) -> str:
    """The first names, and how many there are; control characters are escaped, so that a message keeps its line."""
    return name_some([quoted(name) for name in names])


def quoted(name: str) -> str:
    """A name as it is, or escaped and in quotes where it has outer spaces or is not printable; cut where it is long."""
    start = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."
    return start if name and name == name.strip() and name.isprintable() else ascii(start)
