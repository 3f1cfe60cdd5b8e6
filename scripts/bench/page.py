"""From measurements to words: a line of the terminal, and the tables of docs/benchmarks.md."""

import json
import re
from pathlib import Path
from typing import Any

from measuring import Measurement

from pipeline.common import files

TABLE = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Row = dict[str, Any]


def sentence(row: Row) -> str:
    """`part, what: 1,469 images/s, 13.6 times PIL's 108 (11.8 to 15.7 of 3 pairs); goal at least 10: met`."""
    one = Measurement(**row)
    words = f"{one.part}, {one.what}: {_measured(one)}"
    return words + (f"; goal {_goal(one)}: {_verdict(one)}" if one.goal is not None else "")


def replace_part(lines: Path, part: str, new: list[str]) -> None:
    """Put the lines of a part in the place of its earlier ones; those of other parts stay."""
    old = lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else []
    kept = [line for line in old if json.loads(line)["part"] != part]
    with files.replacing(lines) as beside:
        beside.write_text("".join(f"{line}\n" for line in [*kept, *new]), encoding="utf-8")


def refresh(page: Path, lines: Path) -> None:
    """Make the tables of a page anew: all that stands between `<!-- bench: PART -->` and `<!-- end -->`."""
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]

    def table(match: re.Match[str]) -> str:
        own = [row for row in rows if row["part"] == match[2]]
        return match[1] + _table(own) + match[3]

    text = page.read_text(encoding="utf-8")
    with files.replacing(page) as beside:
        beside.write_text(TABLE.sub(table, text), encoding="utf-8")


def _table(rows: list[Row]) -> str:
    """Goal, measured, ratio of one part, with the machine below."""
    if not rows:
        return "Not measured yet.\n"
    about, measured = rows[0]["machine"], [Measurement(**row) for row in rows[1:]]
    lines = ["| what | measured | goal | |", "|---|---|---|---|"]
    lines += [f"| {one.what} | {_measured(one)} | {_goal(one)} | {_verdict(one)} |" for one in measured]
    where = ", ".join(f"{key} {value}" for key, value in about.items())
    return "\n".join(lines) + f"\n\nMeasured on: {where}.\n"


def _measured(one: Measurement) -> str:
    words = f"{_number(one.ours)} {one.unit}"
    if one.other is not None:
        words += f" against {_number(one.other)} ({one.against})"
    if one.ratio is not None:
        words += f", {one.ratio:.2f} times"
    if one.lowest is not None:
        times = "runs" if one.ratio is None else "pairs"
        words += f" ({one.lowest:.2f} to {one.highest:.2f} in {one.pairs} {times})"
    return words + (f"; {one.note}" if one.note else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.4g}"


def _goal(one: Measurement) -> str:
    return "" if one.goal is None else f"{one.better} {one.goal:,.4g}"


def _verdict(one: Measurement) -> str:
    return {True: "met", False: "**missed**", None: ""}[one.met]
