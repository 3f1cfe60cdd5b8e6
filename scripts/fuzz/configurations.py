"""Configuration files and overrides."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import Case, Outcome, call, judge
from world import World

from pipeline.config.load import load_config

SCALARS = [
    "0", "-1", "1", "1e3", "1e400", "-0.0", "nan", ".nan", ".inf", "-.inf", "0x10", "0o7", "1_000", "true", "yes",
    "null", "~", "''", "' '", "[]", "{}", "[[]]", "[1, 2", "{a: 1", "!!int abc", "!!float x", "!!bool maybe",
    "!!binary x", "!!python/object:os.system ls", "!!timestamp x", "*a", "&a [*a]", "'\\ud800'", '"\\ud800"',
    '"\\0"', "2024-01-01", "9" * 5000, "a" * 5000, "../x", "/dev/null", "$HOME/x", "~/x", "=", "<<", "? a", "- a",
    "| a", "> a", "%TAG", "@x", "`x`", "\u202e", "\u0661", "🐦", "\x07", "sgd", "adam", "resnet50", "auto", "none",
]  # fmt: skip


def keys(value: object, prefix: str = "") -> Iterator[str]:
    """Every key of a configuration, dotted."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{prefix}{name}"
            yield from keys(inner, f"{prefix}{name}.")


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    names = list(keys(load_config(None, world.overrides(world.folder)).model_dump(mode="json")))
    text = (Path(__file__).parents[2] / "configs" / "adam_to_sgd.yaml").read_text()
    makers: list[Callable[[], Case]] = [
        lambda: _override(draw, names),
        lambda: _override(draw, names),
        lambda: _misspelt(draw, names),
        lambda: _file(draw, names),
        lambda: _garbled(draw, text),
        lambda: _deep(draw),
    ]
    while True:
        yield draw.choice(makers)()


def _show(folder: Path, *argv: str) -> str:
    return judge(call(folder, "config", *argv), lambda outcome: _reads_back(folder, outcome))


def _reads_back(folder: Path, outcome: Outcome) -> str | None:
    """The printed configuration has to be taken again, and be the same."""
    (folder / "printed.yaml").write_text(outcome.stdout, "utf-8")
    again = call(folder, "config", "--config", "printed.yaml")
    if again.code != 0:
        return f"its own output is not taken: {again.stderr}"
    return None if again.stdout == outcome.stdout else "its own output reads otherwise"


def _override(draw: random.Random, names: list[str]) -> Case:
    words = [f"{draw.choice(names)}={draw.choice(SCALARS)}" for _ in range(draw.choice([1, 1, 1, 2, 4]))]
    return Case(f"overrides {words!r:.300}", lambda folder: _show(folder, *words))


def _misspelt(draw: random.Random, names: list[str]) -> Case:
    name = list(draw.choice(names))
    position = draw.randrange(len(name))
    name[position : position + draw.randrange(3)] = draw.choice(["", "x", ".", "=", " ", "_", "é", "[0]"])
    word = f"{''.join(name)}={draw.choice(['1', 'a', ''])}"
    return Case(f"override {word!r}", lambda folder: _show(folder, word))


def _file(draw: random.Random, names: list[str]) -> Case:
    """A file that sets some keys to anything."""
    lines = []
    for _ in range(draw.randrange(1, 4)):
        for depth, part in enumerate(draw.choice(names).split(".")):
            lines.append(f"{'  ' * depth}{part}:")
        lines[-1] += f" {draw.choice(SCALARS)}"
    return _written(f"file {json.dumps(lines)[:300]}", "\n".join(lines).encode("utf-8", "surrogatepass"))


def _garbled(draw: random.Random, text: str) -> Case:
    """A good file with some characters changed, doubled or left out."""
    characters = list(text)
    for _ in range(draw.randrange(1, 6)):
        position = draw.randrange(len(characters))
        characters[position] = draw.choice(
            ["", ":", "\t", "{", "}", "[", "'", '"', "\0", "&a", "*a", "!", "\n", "#", "é"]
        )
    return _written("adam_to_sgd.yaml, garbled", "".join(characters).encode())


def _deep(draw: random.Random) -> Case:
    """Files that are too deep, too long, in a circle, or no text."""
    depth = draw.choice([10, 400, 3000, 20000])
    contents = {
        "lists in lists": b"data: " + b"[" * depth + b"]" * depth,
        "maps in maps": b"".join(b" " * min(n, 500) + b"a:\n" for n in range(depth)),
        "a circle of aliases": b"data: &a\n  root: *a\n",
        "a billion laughs": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(9)
        ),
        "noise": draw.randbytes(200),
        "UTF-16": "data: {}".encode("utf-16"),
        "two documents": b"data: {}\n---\ndata: {}\n",
        "a key twice": b"data: {}\ndata: {}\n",
        "a list": b"- 1\n- 2\n",
        "a number": b"12\n",
        "nothing": b"",
        "a key of bytes": b"? !!binary aGk=\n: 1\n",
        "a key of a list": b"? [1, 2]\n: 1\n",
        "merge keys": b"base: &b {lr: 1}\noptim:\n  <<: *b\n",
        "comments alone": b"# nothing\n" * depth,
    }
    what = draw.choice(sorted(contents))
    return _written(f"{what} ({depth})", contents[what])


def _written(what: str, content: bytes) -> Case:
    def body(folder: Path) -> str:
        (folder / "x.yaml").write_bytes(content)
        return _show(folder, "--config", "x.yaml")

    return Case(what, body)
