"""The sample table: one row an image, and the only thing the rest of the pipeline knows of a data set.

A source (CUB, drawn birds, a folder) yields it with the columns of `SOURCE_COLUMNS`; building the
store adds what is known from the pictures themselves (`PICTURE_COLUMNS`); drawing the splits adds `split`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.common.errors import RUN_DATA, DataError, name_some

# id: the source's number of the image, unique. path: relative to the folder of images.
# label: 0 .. C-1. class_name: one per label. official: "train", "val" or "test", as the source has it, or `EITHER`.
# box_*: the bird's bounding box in pixels of the original picture, NaN where a source has none.
SOURCE_COLUMNS = ["id", "path", "label", "class_name", "official", "box_x", "box_y", "box_w", "box_h"]
# width, height: of the original picture in pixels. grey: it has one channel. file_bytes: on disk.
PICTURE_COLUMNS = ["width", "height", "grey", "file_bytes"]
COLUMNS = [*SOURCE_COLUMNS, *PICTURE_COLUMNS, "split"]
SPLITS = ("train", "val", "test")
EITHER = "train or test"
"""in the column official: a test is drawn of these images, as the source has none"""
GROUP = "group"
"""an optional column: images of one group are never parted by a split; an empty text: a group of its own"""
ROWS_AT_ONCE = 50_000
BOX_OUTSIDE = 0.1  # share of a box's area; 0.07 are the most in the first classes of CUB-200-2011
WHAT_NEXT = f"{RUN_DATA}, which writes the table again where it is not as it was written"


def check(table: pd.DataFrame, where: Path | str, columns: Sequence[str] = SOURCE_COLUMNS) -> None:
    """Raise a `DataError` when a table breaks what the rest of the pipeline relies on."""
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{where}: the columns {missing} are missing; {WHAT_NEXT}")
    if table.empty:
        raise DataError(f"{where}: no image is listed; check that this is the data set you meant")
    duplicates = table.loc[table["id"].duplicated(), "id"].tolist()
    if duplicates:
        raise DataError(
            f"{where}: duplicate image ids {name_some(duplicates)}; each image needs an id of its own"
        )
    for column in ("id", "label"):
        if not pd.api.types.is_integer_dtype(table[column]):
            raise DataError(f"{where}: the column {column} has to hold whole numbers; {WHAT_NEXT}")
    for column, allowed in (("official", (*SPLITS, EITHER)), ("split", SPLITS)):
        if column in columns and not table[column].isin(allowed).all():
            raise DataError(f"{where}: the column {column} has to hold {', '.join(allowed)}; {WHAT_NEXT}")
    names = table.groupby("label")["class_name"].nunique()
    if (names > 1).any() or sorted(names.index) != list(range(len(names))):
        raise DataError(f"{where}: labels have to run from 0 to C-1 with one class name each")


def check_learnable(table: pd.DataFrame, where: Path | str) -> None:
    """Raise a `DataError` when there is nothing to learn from the images of a source."""
    if table["label"].nunique() < 2:
        name = str(table["class_name"].iloc[0])
        raise DataError(
            f"{where}: all images are of one class, {name!r}; there is nothing to tell apart, so list images of two "
            "classes or more"
        )
    if not table["official"].isin(["train", EITHER]).any():
        others = "the test" if (table["official"] == "test").all() else "validation or the test"
        raise DataError(f"{where}: all images are for {others}; list some of each class for training")


def classes_without(table: pd.DataFrame, split: str) -> list[str]:
    """The classes that have no image in a split, by label; those without one in "train" are never taught."""
    there = table.loc[table["split"] == split, "label"].unique()
    return class_names(table[~table["label"].isin(there)])


def gaps(table: pd.DataFrame) -> list[str]:
    """What is missing in a table with splits, a sentence each: classes that a split lacks, a split without images."""
    sentences = []
    if untaught := classes_without(table, "train"):
        sentences.append(
            f"no training image of {name_some(untaught)}: what the network says of these classes means nothing; "
            "list some of their images for training, or leave the classes out"
        )
    counts = table["split"].value_counts()
    if counts.get("val", 0) and (unvalidated := classes_without(table, "val")):
        sentences.append(
            f"no validation image of {name_some(unvalidated)}: validation says nothing of these classes"
        )
    if counts.get("test", 0) and (untested := classes_without(table, "test")):
        sentences.append(
            f"no test image of {name_some(untested)}: the test says nothing of these classes, and means over classes "
            "leave them out"
        )
    if not counts.get("test", 0):
        what_next = "set eval.split=val" if counts.get("val", 0) else "hold some out with data.val_fraction"
        sentences.append(f"no test image at all; {what_next}, and `plumage eval` reads the validation images")
    return sentences


def boxes_outside(table: pd.DataFrame) -> list[int]:
    """The ids of the images of whose box more than `BOX_OUTSIDE` lies outside the picture."""
    ends = {"width": ("box_x", "box_w"), "height": ("box_y", "box_h")}
    inside = pd.Series(1.0, table.index)
    for side, (start, size) in ends.items():
        first, last = table[start].clip(lower=0), (table[start] + table[size]).clip(upper=table[side])
        inside *= (last - first).clip(lower=0) / table[size]
    return table.loc[inside < 1 - BOX_OUTSIDE, "id"].tolist()


def class_names(table: pd.DataFrame) -> list[str]:
    """The names of the classes in the order of their labels: [C]."""
    return table.drop_duplicates("label").sort_values("label")["class_name"].astype(str).tolist()


def digest(table: pd.DataFrame) -> str:
    """A digest of what training and evaluation depend on: ids, paths, labels, names and splits."""
    digest = hashlib.sha256(
        b'"'
    )  # that of the table's text by `files.digest_of`, which would hold it three times
    for start in range(0, len(table), ROWS_AT_ONCE):
        rows = table[["id", "path", "label", "class_name", "split"]].iloc[start : start + ROWS_AT_ONCE]
        text = json.dumps(rows.to_csv(index=False, header=start == 0), ensure_ascii=False)
        digest.update(text[1:-1].encode())
    digest.update(b'"')
    return digest.hexdigest()


def read(path: Path, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Read a sample table; a `DataError` says when it is missing or broken."""
    if not path.is_file():
        raise DataError(f"{path}: missing; {RUN_DATA}")
    try:
        table = pd.read_csv(
            path,
            dtype={"path": str, "class_name": str, GROUP: str},
            keep_default_na=False,
            na_values={name: [""] for name in SOURCE_COLUMNS[5:]},
        )
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: not a readable table ({error}); {WHAT_NEXT}") from error
    check(table, path, columns)
    return table
