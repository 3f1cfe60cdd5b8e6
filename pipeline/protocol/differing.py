"""In what two values, or two tables, differ, as clauses that name the place."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

ROUNDING = 1e-9
"""relative difference of numbers that other versions of numpy and scipy may make"""


def same(stored: Any, found: Any, relative: float = ROUNDING) -> bool:
    """Whether two plain values are equal, numbers up to a relative difference."""
    if stored == found:
        return True
    if isinstance(stored, bool) or isinstance(found, bool):
        return False
    if isinstance(stored, int | float) and isinstance(found, int | float):
        both_nan = math.isnan(stored) and math.isnan(found)
        return both_nan or math.isclose(stored, found, rel_tol=relative, abs_tol=1e-3 * relative)
    return False


def values(stored: Any, found: Any, place: str = "") -> Iterator[str]:
    """Differences of two values of plain types, below each key and in each list; what is not stored claims nothing."""
    if isinstance(stored, Mapping) and isinstance(found, Mapping):
        for key, value in stored.items():
            where = f"{place}.{key}" if place else str(key)
            if key in found:
                yield from values(value, found[key], where)
            else:
                yield f"{where} is in the file, and does not follow from what is stored"
    elif isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        for position, pair in enumerate(zip(stored, found, strict=True)):
            yield from values(*pair, f"{place}.{position}")
    elif not same(stored, found):
        yield f"{place} is {stored} in the file, and {found} follows from what is stored"


def tables(stored: pd.DataFrame, found: pd.DataFrame, key: Sequence[str]) -> Iterator[str]:
    """Differences of two tables, cell by cell; a column that is not stored claims nothing.

    Args:
        key: the columns that name a row.
    """
    if foreign := [str(column) for column in stored.columns if column not in found.columns]:
        yield f"the columns {', '.join(foreign)} do not follow from what is stored"
    elif len(stored) != len(found):
        yield f"the table has {len(stored):,} rows instead of {len(found):,}"
    else:
        for column in stored.columns:
            pairs = zip(_plain(stored[column]), _plain(found[column]), strict=True)
            for position, (before, now) in enumerate(pairs):
                if not same(before, now):
                    row = ", ".join(f"{name} {found[name].iloc[position]}" for name in key)
                    yield f"the row of {row}: {column} is {before} in the file, and {now} follows from what is stored"


def _plain(column: "pd.Series[Any]") -> list[Any]:
    """The cells, an empty one as None."""
    return [None if pd.isna(value) else value for value in column.tolist()]
