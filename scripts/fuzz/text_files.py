"""The text files of a folder of one's own in CUB's layout."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from archives import check_data
from harness import Case, Outcome, call, judge
from world import World

NAMES = ["images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt",
    "parts/parts.txt", "parts/part_locs.txt"]  # fmt: skip
CELLS = ["", "0", "-1", "1", "1.5", "1e400", "nan", "NA", "true", "x", "9" * 30, "../../canary", "/etc/passwd", "é",
    "🐦", "\0", "=1+1", "a b", "'", '"', "\\", "a" * 300, "a/b", "con", "..", "\u202e"]  # fmt: skip


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    while True:
        name, changes = draw.choice(NAMES), draw.choice([1, 1, 1, 3])
        content = (world.raw / "CUB_200_2011" / name).read_bytes()
        ways = []
        for _ in range(changes):
            way, content = _changed(content, draw)
            ways.append(way)
        yield _case(world, name, " and ".join(ways), content, draw.random() < 0.03)


def _changed(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    lines = content.decode("utf-8", "surrogateescape").splitlines() or [""]
    position = draw.randrange(len(lines))
    cells = lines[position].split(" ")
    ways: dict[str, Callable[[], list[str]]] = {
        "a line dropped": lambda: lines[:position] + lines[position + 1 :],
        "a line twice": lambda: [*lines, lines[position]],
        "lines shuffled": lambda: draw.sample(lines, len(lines)),
        "half of the lines": lambda: lines[: len(lines) // 2],
        "no lines": list,
        "a header": lambda: ["id value", *lines],
        "an empty line": lambda: [*lines[:position], "", *lines[position:]],
        "a cell dropped": lambda: _with(lines, position, cells[:-1]),
        "a cell more": lambda: _with(lines, position, [*cells, draw.choice(CELLS)]),
        "cells exchanged": lambda: _with(lines, position, cells[::-1]),
        "another cell": lambda: _with(lines, position, [*cells[:-1], draw.choice(CELLS)]),
        "another id": lambda: _with(lines, position, [draw.choice(CELLS), *cells[1:]]),
        "tabs": lambda: [line.replace(" ", "\t") for line in lines],
        "commas": lambda: [line.replace(" ", ",") for line in lines],
        "two spaces": lambda: [line.replace(" ", "  ") for line in lines],
        "a space behind": lambda: [f"{line} " for line in lines],
        "backslashes": lambda: [line.replace("/", "\\") for line in lines],
        "ids from 0": lambda: [" ".join([str(int(first) - 1), *rest]) if (first := line.split(" ")[0]).isdigit()
            else line for line in lines for rest in [line.split(" ")[1:]]],
    }  # fmt: skip
    encodings: dict[str, Callable[[], bytes]] = {
        "CRLF": lambda: "\r\n".join(lines).encode("utf-8", "surrogateescape"),
        "a byte order mark": lambda: b"\xef\xbb\xbf" + content,
        "UTF-16": lambda: "\n".join(lines).encode("utf-16", "replace"),
        "Latin-1": lambda: content + "é".encode("latin-1"),
        "a zero byte": lambda: content[:20] + b"\0" + content[20:],
        "noise": lambda: draw.randbytes(300),
    }
    way = draw.choice(sorted([*ways, *encodings]))
    if way in encodings:
        return way, encodings[way]()
    return way, ("\n".join(ways[way]()) + "\n").encode("utf-8", "surrogateescape")


def _with(lines: list[str], position: int, cells: list[str]) -> list[str]:
    return [*lines[:position], " ".join(cells), *lines[position + 1 :]]


def _case(world: World, name: str, way: str, content: bytes, as_folder: bool) -> Case:
    def body(folder: Path) -> str:
        shutil.copytree(world.raw, folder / "mine")
        path = folder / "mine" / "CUB_200_2011" / name
        path.unlink()
        if as_folder:
            path.mkdir()
        else:
            path.write_bytes(content)
        before = {item: item.stat().st_mtime_ns for item in (folder / "mine").rglob("*")}
        overrides = [word for word in world.overrides(folder) if not word.startswith("data.s")]

        def right(outcome: Outcome) -> str | None:  # noqa: ARG001
            if before != {item: item.stat().st_mtime_ns for item in (folder / "mine").rglob("*")}:
                return "the user's folder was written to"
            return check_data(folder)

        return judge(call(folder, "data", *overrides, f"data.archive={folder / 'mine'}"), right)

    return Case(f"{name}: {'a folder' if as_folder else way}", body)
