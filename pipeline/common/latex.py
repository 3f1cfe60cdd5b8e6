"""Tables for a paper: the same rows as LaTeX, with the rules of the package booktabs, and as CSV."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.common import files, tables

LONG = 45  # rows that fit on a page; longer tables are a `longtable`
ESCAPED = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **dict.fromkeys("\r\n\t", " "),
    }
)


def escape(text: str) -> str:
    """Text that LaTeX sets as it is written here."""
    return text.translate(ESCAPED)


def write_table(shown: pd.DataFrame, raw: pd.DataFrame, path: Path) -> None:
    """Write `path`.tex, the values in the words that a reader sees, and `path`.csv, the numbers in full.

    Args:
        shown: text; the first column is set flush left, the others flush right.
        raw: the same rows.
        path: without a suffix.
    """
    tables.write_csv(raw, path.with_suffix(".csv"))
    files.write_text(path.with_suffix(".tex"), tabular(list(shown.columns), shown.to_numpy().tolist()))


def tabular(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `tabular`, or of more than 45 rows a `longtable`, which repeats its head on every page.

    A first line names the packages that it needs.
    """
    is_long = len(rows) > LONG
    name, packages = ("longtable", "booktabs, longtable") if is_long else ("tabular", "booktabs")
    head = _row(heads)
    lines = [
        f"% needs \\usepackage{{{packages}}}",
        f"\\begin{{{name}}}{{l{'r' * (len(heads) - 1)}}}",
        "\\toprule",
        head,
        "\\midrule",
        *(["\\endhead", "\\bottomrule", "\\endfoot"] if is_long else []),
        *map(_row, rows),
        *([] if is_long else ["\\bottomrule"]),
        f"\\end{{{name}}}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(escape(str(cell)) for cell in cells) + r" \\"
