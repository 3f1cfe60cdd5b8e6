"""Source `csv`: a table with a row a picture, as CSV, TSV, JSON lines or Parquet, by the file's ending.

A CSV may be of commas, semicolons or tabs, as a spreadsheet program saves it (`text_tables`).
Its columns are path (relative to the table) and label; and if they are there, split (train, val, test), box_x, box_y,
box_width, box_height (pixels of the picture as it is shown), group (pictures that no split parts) and id (a whole
number). What a label looks like does not matter: `NA`, `007`, `1e5` and `true` are names of classes. Spaces around the
name of a group do not count, nor how its accents are coded.
"""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.data import text_tables
from pipeline.data.sample_table import EITHER, GROUP
from pipeline.data.sources.own_pictures import (
    SPLIT_NAMES,
    OwnPictures,
    check_classes,
    finish,
    refuse,
    shown,
    twins,
    unwritable,
)

NEEDED = ("path", "label")
BOX_COLUMNS = {"box_x": "box_x", "box_y": "box_y", "box_width": "box_w", "box_height": "box_h"}
COLUMNS = (*NEEDED, "split", *BOX_COLUMNS, GROUP, "id")
WHOLE_NUMBER = r"[0-9]{1,18}"
WHAT_TO_GIVE = "set data.path to the table"
WHAT_NEXT = "save it again as CSV, with the columns path and label in the first line"


class PictureList(OwnPictures):
    """Pictures that a table lists."""

    prefix = "csv"

    def find_root(self, raw: Path) -> Path:  # noqa: ARG002  # nothing is fetched
        """The folder of the table."""
        if not self.given.is_file():
            what = "a folder, and no table" if self.given.is_dir() else "no such file"
            raise DataError(
                f"{self.given}: {what}; set data.path to a table ({', '.join(READERS)}) with the columns path and label"
            )
        return self.given.parent

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table; one `DataError` lists every problem of the list."""
        listed = read_texts(self.given)
        rows = listed.reindex(columns=[name for name in COLUMNS if name in listed])
        if GROUP in rows:  # one group, however it is typed: no split parts it
            rows[GROUP] = rows[GROUP].map(text_tables.plain)
        refuse(self.given, problems_of(rows, root))
        table = table_of(rows)
        check_classes(table, self.given, self.config.test_fraction)
        return table

    def digest(self, root: Path) -> str:  # noqa: ARG002  # the table is what was given
        """The SHA-256 of the table."""
        return files.digest_of_file(self.given)

    def remarks(self, root: Path) -> list[str]:  # noqa: ARG002  # of the table alone
        """Columns that have no meaning here."""
        unused = [name for name in read_texts(self.given).columns if name not in COLUMNS]
        return unused and [f"{self.given}: columns that are not used: {shown(unused)}"]


def read_texts(path: Path) -> pd.DataFrame:
    """A table with every cell as the text that stands there; "" where there is none.

    Raises:
        DataError: the file is no table, or lacks a column or has one twice.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: ends in none of {', '.join(READERS)}; save the table as one of these")
    try:
        table = read(path)
    except (ValueError, TypeError, OSError, OverflowError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: no readable {path.suffix[1:]} table ({reason}); save it again, in UTF-8"
        ) from error
    names = list(map(str, table.columns))
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: columns more than once: {shown(doubled)}; keep one of each name")
    if missing := [name for name in NEEDED if name not in names and names]:
        raise DataError(
            f"{path}: no column {' and no column '.join(missing)} among {shown(names)}; name the columns path (of the "
            "picture, relative to this file) and label in the first line"
        )
    if table.empty:
        raise DataError(f"{path}: no picture is listed; add a row for each")
    return table


def _csv(path: Path) -> pd.DataFrame:
    return text_tables.read_texts(path, WHAT_TO_GIVE, WHAT_NEXT, NEEDED)


def _tsv(path: Path) -> pd.DataFrame:
    """Of tabs, however many commas a name in the first line has."""
    # header=None: pandas would rename a doubled column
    cells = pd.read_csv(
        path, sep="\t", header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig"
    ).fillna("")  # of a row that is too short
    return cells[1:].set_axis(cells.iloc[0].str.strip().tolist(), axis=1).reset_index(drop=True)


def _json_lines(path: Path) -> pd.DataFrame:
    """Numbers are kept as they are written, so that 007 as a text and 1e5 as a number are what stands there."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                pairs = json.loads(
                    line, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_Row
                )
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(pairs, _Row):
                raise ValueError(f'line {number}: no object such as {{"path": ..., "label": ...}}')
            rows.append(pairs.cells)
    return pd.DataFrame(rows, dtype=object).fillna("")


class _Row:
    """An object of a JSON line: text by key."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.cells = {key: _text(value) for key, value in pairs}
        if len(self.cells) < len(pairs):
            raise ValueError("a key stands there twice")


def _parquet(path: Path) -> pd.DataFrame:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs the package pyarrow; install it (pip install pyarrow), or save the table as "
            "CSV"
        ) from error
    table = parquet.read_table(path)
    cells = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    return pd.DataFrame(dict(enumerate(cells)), dtype=object).set_axis(table.column_names, axis=1)


def _text(value: object) -> str:
    """A cell as a text: true and false as JSON has them."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"a {type(value).__name__.strip('_').lower()} where a text or a number is expected")


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}


def problems_of(rows: pd.DataFrame, root: Path) -> list[str]:
    """What is wrong with the rows, a sentence each: what; what to do next."""
    kinds = [
        *_paths(rows["path"], root),
        (_numbered(rows["label"].str.strip() == ""), "without a label", "give each picture its class"),
        (unwritable(rows["label"]), "labels with a carriage return or a zero byte", "take it out"),
        (
            twins(rows["label"]),
            "labels that differ only in case, accents' coding or spaces",
            "spell each class alike",
        ),
        (unwritable(rows.get(GROUP, [])), "groups with a carriage return or a zero byte", "take it out"),
        *(_splits(rows) if "split" in rows else ()),
        *(_boxes(rows) if any(name in rows for name in BOX_COLUMNS) else ()),
        *(_ids(rows["id"]) if "id" in rows else ()),
    ]
    return [f"{what}: {shown(found)}; {next_}" for found, what, next_ in kinds if found]


Kind = tuple[list[str], str, str]
"""what is found, what is wrong with it, what to do next"""


def _paths(paths: pd.Series, root: Path) -> list[Kind]:
    pure = paths.map(PurePosixPath)
    outside = pure.map(lambda path: path.is_absolute() or ".." in path.parts)
    backslashes = paths.map(lambda path: "\\" in path and not os.path.exists(root / path))  # noqa: PTH110  # of any length
    normal = pure.map(str)
    doubled = normal[normal.duplicated() & (paths != "")].unique().tolist()
    above = "put the table above its pictures, and give paths relative to it"
    return [
        (_numbered(paths == ""), "rows without a path", "give the picture's path, relative to this file"),
        (unwritable(paths), "paths with a carriage return or a zero byte", "rename these pictures"),
        (paths[outside].tolist(), "paths that lead out of the table's folder", above),
        (
            paths[backslashes].tolist(),
            "paths with \\, where / is expected between folders",
            "write / instead",
        ),
        (doubled, "paths more than once", "list each picture once"),
    ]


def _splits(rows: pd.DataFrame) -> list[Kind]:
    split = rows["split"].str.strip().str.casefold()
    given = split != ""
    unknown = given & ~split.isin(list(SPLIT_NAMES))
    straddling: list[str] = []
    if GROUP in rows:
        named = rows[GROUP] != ""
        splits_of = split.map(SPLIT_NAMES)[named].groupby(rows.loc[named, GROUP]).nunique()
        straddling = splits_of.index[splits_of > 1].tolist()
    unsplit = _numbered(~given) if given.any() else []
    fill = "fill it in, or leave the whole column empty, and splits are drawn"
    return [
        (rows.loc[unknown, "split"].unique().tolist(), "unknown splits", "write train, val or test"),
        (unsplit, "rows without a split, where others have one", fill),
        (straddling, "groups in more than one split", "put all pictures of a group into one"),
    ]


def _boxes(rows: pd.DataFrame) -> list[Kind]:
    cells = rows.reindex(columns=list(BOX_COLUMNS), fill_value="").apply(lambda column: column.str.strip())
    given = cells != ""
    numbers = cells.apply(pd.to_numeric, errors="coerce").abs() < float("inf")
    partly = given.any(axis=1) & ~(given & numbers).all(axis=1)
    values = cells.apply(pd.to_numeric, errors="coerce")
    flat = given.all(axis=1) & ((values["box_width"] <= 0) | (values["box_height"] <= 0))
    four = f"boxes that are not four numbers ({', '.join(BOX_COLUMNS)})"
    area = "give box_width and box_height in pixels, or leave the box empty"
    return [
        (_numbered(partly), four, "give all four in pixels, or none"),
        (_numbered(flat), "boxes without an area", area),
    ]


def _ids(ids: pd.Series) -> list[Kind]:
    odd = ~ids.str.fullmatch(WHOLE_NUMBER)
    doubled = ids[ids.str.lstrip("0").duplicated() & ~odd]
    what_next = "number the pictures, or give the column another name, and they are numbered here"
    return [
        (ids[odd].unique().tolist(), "ids that are no whole numbers", what_next),
        (doubled.unique().tolist(), "ids more than once", what_next),
    ]


def _numbered(rows: pd.Series) -> list[str]:
    """The rows that are true, counted from 1 without the line of names and empty lines: "row 3"."""
    return [f"row {number + 1}" for number in rows.index[rows]]


def table_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The sample table of rows without problems."""
    split = rows["split"].str.strip().str.casefold() if "split" in rows else pd.Series("", rows.index)
    official = split.map(SPLIT_NAMES).fillna(EITHER)
    if not (official == "test").any():
        official = official.replace("train", EITHER)
    label = rows["label"].map(text_tables.plain)
    table = pd.DataFrame({"path": rows["path"].map(lambda path: str(PurePosixPath(path)))})
    table = table.assign(class_name=label, official=official)
    for column, name in BOX_COLUMNS.items():
        if column in rows:
            table[name] = pd.to_numeric(rows[column], errors="coerce")
    if GROUP in rows:
        table[GROUP] = rows[GROUP]
    if "id" in rows:
        table["id"] = rows["id"].astype("int64")
    return finish(table)
