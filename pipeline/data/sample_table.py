"""The sample table: one row an image, and the only thing the rest of the pipeline knows of a data set.

A source (CUB, drawn birds, a folder) yields it with the columns of `SOURCE_COLUMNS`; building the
store adds what is known from the pictures themselves (`PICTURE_COLUMNS`); drawing the splits adds `split`.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.common import files
from pipeline.common.errors import DataError, name_some

# id: the source's number of the image, unique. path: relative to the folder of images.
# label: 0 .. C-1. class_name: one per label. official: "train" or "test", as the source has it.
# box_*: the bird's bounding box in pixels of the original picture, NaN where a source has none.
SOURCE_COLUMNS = ["id", "path", "label", "class_name", "official", "box_x", "box_y", "box_w", "box_h"]
# width, height: of the original picture in pixels. grey: it has one channel. file_bytes: on disk.
PICTURE_COLUMNS = ["width", "height", "grey", "file_bytes"]
COLUMNS = [*SOURCE_COLUMNS, *PICTURE_COLUMNS, "split"]
SPLITS = ("train", "val", "test")


def check(table: pd.DataFrame, where: Path | str, columns: Sequence[str] = SOURCE_COLUMNS) -> None:
    """Raise a `DataError` when a table breaks what the rest of the pipeline relies on."""
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(
            f"{where}: the columns {missing} are missing; run `make data` to write the table again"
        )
    if table.empty:
        raise DataError(f"{where}: no image is listed; check that this is the data set you meant")
    duplicates = table.loc[table["id"].duplicated(), "id"].tolist()
    if duplicates:
        raise DataError(
            f"{where}: duplicate image ids {name_some(duplicates)}; each image needs an id of its own"
        )
    names = table.groupby("label")["class_name"].nunique()
    if (names > 1).any() or sorted(names.index) != list(range(len(names))):
        raise DataError(f"{where}: labels have to run from 0 to C-1 with one class name each")


def class_names(table: pd.DataFrame) -> list[str]:
    """The names of the classes in the order of their labels: [C]."""
    return table.drop_duplicates("label").sort_values("label")["class_name"].astype(str).tolist()


def digest(table: pd.DataFrame) -> str:
    """A digest of what training and evaluation depend on: ids, paths, labels, names and splits."""
    return files.digest_of(table[["id", "path", "label", "class_name", "split"]].to_csv(index=False))


def read(path: Path, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Read a sample table; a `DataError` says when it is missing or broken."""
    if not path.is_file():
        raise DataError(f"{path}: missing; run `make data`")
    try:
        table = pd.read_csv(
            path,
            dtype={"path": str, "class_name": str},
            keep_default_na=False,
            na_values={name: [""] for name in SOURCE_COLUMNS[5:]},
        )
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: not a readable table ({error}); delete it and run `make data`") from error
    check(table, path, columns)
    return table
