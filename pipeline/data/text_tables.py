"""Small tables that a person writes or edits: CSV as a spreadsheet program saves it, every cell a text."""

import csv
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from itertools import islice, zip_longest
from pathlib import Path

import pandas as pd

from pipeline.common import files
from pipeline.common.errors import DataError, name_some
from pipeline.data.sources.own_pictures import shown

csv.field_size_limit(2**31 - 1)  # a cell may hold a polygon
SEPARATORS = ",;\t"
ROWS_AT_ONCE = 20_000
LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)?")


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


def read_texts(path: Path, what_to_give: str, what_next: str, needed: Collection[str] = ()) -> pd.DataFrame:
    """A CSV of commas, semicolons or tabs: every cell as the text that stands there, "" where there is none.

    Args:
        what_to_give: advice where there is no such file.
        what_next: advice where it is no table.
        needed: columns that tell the separator, where a name of another one holds some.

    Raises:
        DataError: there is no such file, or it is no table.
    """
    text = read_text(path, what_to_give)
    if not text.strip():
        raise DataError(f"{path}: an empty file; {what_next}")
    lines = map(re.Match.group, LINE.finditer(text))  # io.StringIO takes four bytes a letter
    try:
        reader = csv.reader(lines, delimiter=_separator(text, needed), strict=True)
        names = [name.strip() for name in next(reader)]
        if len(set(names)) < len(names):
            raise DataError(f"{path}: a column stands there twice among {shown(names)}; keep one of each")
        frames, odd, first = [_frame(names, [])], [], 1
        while chunk := list(islice(reader, ROWS_AT_ONCE)):
            odd += [number for number, line in enumerate(chunk, first) if any(line[len(names) :])]
            frames.append(_frame(names, chunk))
            first += len(chunk)
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: no readable table ({error}); {what_next}") from error
    if odd:
        raise DataError(
            f"{path}: rows with more cells than the first line has columns: {name_some(odd)}; quote what holds a comma"
        )
    return pd.concat(frames, ignore_index=True)


def _separator(text: str, needed: Collection[str]) -> str:
    """The separator by which the first line has most of the needed columns, then by which it has most columns."""
    first = re.match(r"[^\r\n]*", text)
    assert first is not None, "matches any text"
    unquoted = re.sub('"([^"]*)"', lambda cell: re.sub(f"[{SEPARATORS}]", "", cell[1]), first[0])

    def likely(separator: str) -> tuple[int, int]:
        names = {name.strip() for name in unquoted.split(separator)}
        return len(names.intersection(needed)), unquoted.count(separator)

    return max(SEPARATORS, key=likely)


def _frame(names: Sequence[str], lines: Iterable[list[str]]) -> pd.DataFrame:
    """The cells of lines as texts, without lines of nothing but spaces."""
    rows = [line for line in lines if any(map(str.strip, line))]
    columns = islice(zip_longest(names, *rows, fillvalue=""), len(names))
    return pd.DataFrame({name: cells for name, *cells in columns}, dtype=str)
