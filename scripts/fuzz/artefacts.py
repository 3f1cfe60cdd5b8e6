"""What runs and data stages leave on the disk, damaged or edited, and the verbs that read it again."""

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import Case, Outcome, call, damaged, judge
from world import World

ODD: list[Any] = [None, -1, 0, 1e400, "x", [], {}, True, "9" * 400, {"a": None}]
READERS = {  # the verbs that read a file of a run
    "log.jsonl": ["report", "runs", "compare", "train", "eval", "sync"],
    "status.json": ["runs", "train", "eval", "sync"],
    "environment.json": ["report", "runs", "train", "compare"],
    "config.yaml": ["runs", "report", "compare", "sync"],
    "test_reads.jsonl": ["eval", "report", "runs"],
}
OF_EVAL = ["report", "compare", "eval", "audit", "runs", "sync"]
OF_DATA = ["data", "train", "eval", "report", "audit"]


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    paths = [
        path.relative_to(world.folder)
        for part in ("runs", "data")
        for path in sorted((world.folder / part).rglob("*"))
        if path.is_file()
        and "raw" not in path.parts
        and "checkpoints" not in path.parts
        and path.stat().st_size
    ]
    while True:
        path = draw.choice(paths)
        content = (world.folder / path).read_bytes()
        edits = {".json": _json, ".jsonl": _json_lines, ".csv": _table}
        if path.suffix in edits and draw.random() < 0.6:
            way, content = edits[path.suffix](content, draw)
        elif draw.random() < 0.1:
            way, content = "a folder", None
        elif draw.random() < 0.1:
            way, content = "gone", b""
        else:
            way, content = damaged(content, draw)
        verbs = OF_DATA if path.parts[0] == "data" else READERS.get(path.name, OF_EVAL)
        yield _case(world, path, way, content, draw.choice(verbs))


def _json(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """JSON of the right syntax, and another shape."""
    tree = json.loads(content)
    place, path = tree, []
    while isinstance(place, dict) and place:
        key = draw.choice(sorted(place))
        path.append(key)
        if not isinstance(place[key], dict) or not place[key] or draw.random() < 0.5:
            break
        place = place[key]
    if not path or draw.random() < 0.15:
        other = draw.choice([*ODD, "[" * 5000])
        return "another value", (other if other == "[" * 5000 else json.dumps(other)).encode()
    ways: dict[str, Callable[[], Any]] = {
        "taken away": lambda: place.pop(path[-1]),
        "replaced": lambda: place.__setitem__(path[-1], draw.choice(ODD)),
        "beside another": lambda: place.__setitem__("surplus", draw.choice(ODD)),
    }
    way = draw.choice(sorted(ways))
    ways[way]()
    return f"{'.'.join(path)} {way}", json.dumps(tree).encode()


def _json_lines(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    lines = content.splitlines()
    position = draw.randrange(len(lines))
    ways: dict[str, Callable[[], list[bytes]]] = {
        "a record edited": lambda: [
            *lines[:position],
            _json(lines[position], draw)[1],
            *lines[position + 1 :],
        ],
        "a record dropped": lambda: lines[:position] + lines[position + 1 :],
        "a record twice": lambda: lines[: position + 1] + lines[position:],
        "records shuffled": lambda: draw.sample(lines, len(lines)),
        "not UTF-8": lambda: [*lines[:position], b'{"x": "\xff\xfe"}', *lines[position:]],
        "a deep record": lambda: [*lines[:position], b'{"a":' * 20000, *lines[position:]],
        "a line of text": lambda: [*lines[:position], b"hello", *lines[position:]],
    }
    way = draw.choice(sorted(ways))
    return f"record {position}: {way}", b"\n".join(ways[way]()) + b"\n"


def _table(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    rows = list(csv.reader(io.StringIO(content.decode())))
    position, column = draw.randrange(len(rows)), draw.randrange(len(rows[0]))
    odd = draw.choice(
        ["", "x", "-1", "1e400", "nan", "9" * 30, "0.5", "\ud7ff", "=1+1", "a,b", 'a"b', "a\nb"]
    )

    def cell() -> None:
        rows[position][column] = odd

    ways: dict[str, Callable[[], Any]] = {
        "a cell": cell,
        "a column dropped": lambda: [row.pop(column) for row in rows],
        "a column renamed": lambda: rows[0].__setitem__(column, "other"),
        "a row dropped": lambda: rows.pop(position),
        "a row twice": lambda: rows.append(rows[position]),
        "rows shuffled": lambda: rows.__setitem__(slice(1, None), draw.sample(rows[1:], len(rows) - 1)),
        "the header alone": lambda: rows.__delitem__(slice(1, None)),
        "a cell less in a row": rows[position].pop,
    }
    way = draw.choice(sorted(ways))
    ways[way]()
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return f"{way} ({odd!r}), row {position}, column {column}", stream.getvalue().encode()


def _case(world: World, path: Path, way: str, content: bytes | None, verb: str) -> Case:
    def body(folder: Path) -> str:
        world.copy(folder, "data", "runs")
        target = folder / path
        target.unlink()
        if content is None:
            target.mkdir()
        elif way != "gone":
            target.write_bytes(content)
        words = {
            "runs": ["runs", str(folder / "runs")],
            "compare": ["compare", "runs/good", str(world.run)],
            "sync": ["sync", "--offline", "runs/good"],
        }.get(verb) or [verb, *world.overrides(folder)]
        if verb == "train":
            words += ["train.epochs=2", "run.name=good" if path.parts[0] == "runs" else "run.name=new"]
        if path.name == "pixels.bin" and len(content or b"") == (world.folder / path).stat().st_size:
            judge(
                call(folder, "data", "--verify", *world.overrides(folder))
            )  # sizes alone are compared at each start
        outcome = call(folder, *words, environment={"WANDB_MODE": "offline", "WANDB_SILENT": "true"})
        return judge(outcome, lambda outcome: _right(world, folder, verb, outcome))

    return Case(f"{path.name}: {way}; {verb}", body)


def _right(world: World, folder: Path, verb: str, outcome: Outcome) -> str | None:
    """What is computed again has the numbers of the undisturbed run."""
    if verb == "eval":
        good, now = (
            json.loads((root / "runs" / "good" / "eval" / "test" / "metrics.json").read_text())
            for root in (world.folder, folder)
        )
        differing = [name for name in ("n", "top1", "per_class_mean", "nll") if good[name] != now[name]]
        return f"other numbers than the undisturbed run: {differing}" if differing else None
    if verb == "train":
        import torch

        name = "new" if (folder / "runs" / "new").is_dir() else "good"
        models = [
            torch.load(path / "checkpoints" / "last.pt", weights_only=True)["model"]
            for path in (world.run, folder / "runs" / name)
        ]
        same = all(torch.equal(models[0][key], models[1][key]) for key in models[0])
        return None if same else "other weights than those of the undisturbed run"
    if verb in {"report", "audit", "compare"} and "NaN" in outcome.stdout:
        return "NaN in JSON"
    return None
