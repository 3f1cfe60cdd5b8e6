"""Tables of pictures with hostile cells, columns and bytes."""

import csv
import io
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from given_pictures import CLASSES, PICTURES, SPLITS, Given, case_of, class_folders
from harness import Case
from world import World

Rows = list[dict[str, str]]
CELLS = [
    "", " ", "0", "-1", "1.5", "1e400", "-inf", "nan", "NA", "None", "true", "x", "9" * 30, "../canary", "/etc/passwd",
    "crow/../crow/0.png", "./crow/0.png", "crow//0.png", "crow\\0.png", "crow", "CROW/0.png", "\u00e9", "\U0001f426",
    "\x01", "=1+1", "a b", '"', "'", "a,b", "a\tb", "a\nb", "a\rb", "\u2028", "x" * 5000, "train", "TEST", "dev",
]  # fmt: skip


def _rows(draw: random.Random) -> Rows:
    """A good table."""
    boxes = {"box_x": "1", "box_y": "2", "box_width": "10", "box_height": "12.5"}
    extra = {
        **draw.choice([{}, boxes]),
        **draw.choice([{}, {"group": ""}]),
        **draw.choice([{}, {"note": "n"}]),
    }
    return [{"path": f"{name}/{n}.png", "label": name, **extra} for name in CLASSES for n in range(PICTURES)]


def cells(world: World, draw: random.Random) -> Case:
    """One to three cells of other content."""
    rows = _rows(draw)
    if draw.random() < 0.3:
        rows = [row | {"split": "test" if number % 4 == 3 else "train"} for number, row in enumerate(rows)]
    if draw.random() < 0.3:
        rows = [row | {"id": str(7 * number)} for number, row in enumerate(rows)]
    ways = []
    for _ in range(draw.choice([1, 1, 3])):
        row, column, cell = draw.randrange(len(rows)), draw.choice(list(rows[0])), draw.choice(CELLS)
        like_it = [each for each in rows if each["label"] == rows[row]["label"]]
        whole = column == "label" and draw.random() < 0.8
        rows = [
            each | {column: cell} if each in (like_it if whole else [rows[row]]) else each for each in rows
        ]
        ways.append(f"{column} {cell[:20]!a} in row {row + 1}{' and its class' if whole else ''}")
    return _table_case(world, draw, ", ".join(ways), rows)


def columns(world: World, draw: random.Random) -> Case:
    """Columns that are missing, doubled, or have other names; no rows; rows twice."""
    rows = _rows(draw)
    what = draw.choice(
        ["no path", "no label", "another name", "no rows", "a row twice", "one class", "no columns"]
    )
    if what.startswith("no ") and what != "no rows":
        rows = [
            {key: cell for key, cell in row.items() if key != what[3:] and what != "no columns"}
            for row in rows
        ]
    elif what == "another name":
        old, new = (
            draw.choice(["path", "label"]),
            draw.choice(["Path", " path", "label ", "", "path", "label", "x"]),
        )
        rows = [{new if key == old else key: cell for key, cell in row.items()} for row in rows]
    elif what == "one class":
        rows = [row | {"label": "crow"} for row in rows]
    else:
        rows = [] if what == "no rows" else [*rows, rows[0]]
    return _table_case(world, draw, what, rows)


def groups(world: World, draw: random.Random) -> Case:
    """Groups of several pictures, of which one may be in two splits, or all pictures of a class be one."""
    rows = [row | {"group": f"nest {number // 2}"} for number, row in enumerate(_rows(draw))]
    what = draw.choice(
        ["pairs", "pairs", "straddling", "one group a class", "one group in all", "across classes"]
    )
    if what == "straddling":
        rows = [row | {"split": "test" if number % 2 else "train"} for number, row in enumerate(rows)]
    elif what != "pairs":
        of_row = {"one group a class": lambda number: number // PICTURES, "one group in all": lambda _: 0}
        rows = [
            row | {"group": str(of_row.get(what, lambda number: number % PICTURES)(number))}
            for number, row in enumerate(rows)
        ]
    return _table_case(world, draw, f"groups, {what}", rows)


def contents(world: World, draw: random.Random) -> Case:
    """A table's file that is cut, in another encoding, or no table."""
    kind = draw.choice(["csv", "tsv", "jsonl", "ndjson", "parquet", "txt", "CSV"])
    content = text_of(
        _rows(draw), draw.choice(["csv", "tsv", "jsonl"]) if kind in ("parquet", "txt") else kind
    )
    ways: dict[str, Callable[[], bytes]] = {
        "as it is": lambda: content,
        "empty": lambda: b"",
        "a byte order mark": lambda: b"\xef\xbb\xbf" + content,
        "UTF-16": lambda: content.decode().encode("utf-16"),
        "Latin-1": lambda: content.replace(b"gull", b"g\xfcll"),
        "cut short": lambda: content[: draw.randrange(len(content))],
        "a zero byte": lambda: content[:40] + b"\0" + content[40:],
        "noise": lambda: draw.randbytes(300),
        "an open quote": lambda: content + b'"crow/0.png,crow\n',
        "a cell more": lambda: content.replace(b"\n", b",x\n", 3).replace(b",x\n", b"\n", 2),
        "CRLF": lambda: content.replace(b"\n", b"\r\n"),
        "numbers as JSON": lambda: b"1\n2\n",
        "a deep list": lambda: b"[" * 100_000,
        "lists in cells": lambda: b'{"path": ["crow/0.png"], "label": {"a": 1}}\n',
    }
    what = draw.choice(sorted(ways))
    given = Given(class_folders(draw) | {f"mine/table.{kind}": ways[what]()}, path=f"mine/table.{kind}")
    return case_of(world, draw, f"table.{kind}, {what}", "csv", given, lambda _: None, None)


def text_of(rows: Rows, kind: str) -> bytes:
    """A table as CSV, TSV or JSON lines."""
    columns = list(rows[0]) if rows else ["path", "label"]
    if kind in ("jsonl", "ndjson"):
        return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
    writer.writerows([columns, *([row[name] for name in columns] for row in rows)])
    return stream.getvalue().encode("utf-8", "surrogateescape")


def _table_case(world: World, draw: random.Random, what: str, rows: Rows) -> Case:
    kind = draw.choice(["csv", "tsv", "jsonl"])
    files = class_folders(draw) | {f"mine/t.{kind}": text_of(rows, kind)}

    def wrong(samples: pd.DataFrame) -> str | None:
        listed = [{key.strip(): cell for key, cell in row.items()} for row in rows]
        expected = {str(Path(row["path"])): plain(row["label"]) for row in listed}
        found = dict(zip(samples["path"], samples["class_name"], strict=True))
        if not found.items() <= expected.items():
            return f"other labels than the table's: {sorted(found.items() - expected.items())}"
        for row in listed:
            split = samples.loc[samples["path"] == str(Path(row["path"])), "split"].tolist()
            named = SPLITS.get(row.get("split", "").strip().casefold(), "")
            if named == "test" and split not in ([], ["test"]):
                return f"{row['path']} is for the test, and in {split}"
        groups = samples[samples["group"] != ""].groupby("group")["split"] if "group" in samples else None
        return "a group is in two splits" if groups is not None and (groups.nunique() > 1).any() else None

    return case_of(
        world, draw, f"{kind}, {what}", "csv", Given(files, path=f"mine/t.{kind}"), wrong, lambda _: len(rows)
    )


def plain(name: str) -> str:
    """A class's name as it is kept."""
    return unicodedata.normalize("NFC", name.strip())
