"""Small tables that a person writes or edits: CSV as a spreadsheet program saves it, every cell a text."""

import csv
import io
import re
import unicodedata
from pathlib import Path

import pandas as pd

from pipeline.common import files
from pipeline.common.errors import DataError, name_some
from pipeline.data.sources.own_pictures import shown

csv.field_size_limit(2**31 - 1)  # a cell may hold a polygon
SEPARATORS = ",;\t"


def plain(text: str) -> str:
    """A name without outer spaces, with composed accents (NFC): macOS writes them decomposed."""
    return unicodedata.normalize("NFC", text.strip())


def read_text(path: Path, what_to_give: str) -> str:
    """A file's text without the mark and the empty lines at its beginning.

    Raises:
        DataError: there is no such file, or it is not UTF-8.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; {what_to_give}")
    return files.read_text(path, "save it as UTF-8 (CSV)").removeprefix("\ufeff").lstrip("\r\n")


def read_texts(path: Path, what_to_give: str, what_next: str) -> pd.DataFrame:
    """A CSV of commas, semicolons or tabs: every cell as the text that stands there, "" where there is none.

    Args:
        what_to_give: advice where there is no such file.
        what_next: advice where it is no table.

    Raises:
        DataError: there is no such file, or it is no table.
    """
    text = read_text(path, what_to_give)
    unquoted = re.sub('"[^"]*"', "", text.split("\n", 1)[0])
    try:
        header, *lines = csv.reader(
            io.StringIO(text, newline=""), delimiter=max(SEPARATORS, key=unquoted.count), strict=True
        )
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: no readable table ({error}); {what_next}") from error
    names = [name.strip() for name in header]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a column stands there twice among {shown(names)}; keep one of each")
    if odd := [number for number, line in enumerate(lines, 1) if any(line[len(names) :])]:
        raise DataError(
            f"{path}: rows with more cells than the first line has columns: {name_some(odd)}; quote what holds a comma"
        )
    cells = [[*line, *[""] * len(names)][: len(names)] for line in lines if any(line)]
    return pd.DataFrame(cells, columns=names, dtype=str)
