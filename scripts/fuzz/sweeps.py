"""Sweep files, and what a sweep has written of itself."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from harness import Case, Outcome, call, damaged, judge
from world import World

ODD: list[Any] = [None, -1, 0, 1e400, "x", [], {}, True, [[]], {"min": 1}, {"values": []}, {"value": {}},
    {"distribution": "x"}, {"min": 2, "max": 1}, {"min": "a", "max": "b"}, {"values": [None]}, {"values": [1, "x"]},
    {"distribution": "normal", "mu": 0},
    {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, {"min": float("nan"), "max": 1}]  # fmt: skip


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    while True:
        yield draw.choice([_plan, _plan, _plan, _text, _journal])(world, draw)


def plan(world: World) -> dict[str, Any]:
    """A good sweep of two trials of a second each."""
    words = [
        word
        for word in world.overrides(world.folder)
        if not word.startswith(("run.", "optim.lr", "train.epochs"))
    ]
    return {
        "program": "pipeline",
        "command": [
            "${env}",
            "${interpreter}",
            "-m",
            "${program}",
            "train",
            *words,
            "train.epochs=1",
            "${args_no_hyphens}",
        ],
        "method": "random",
        "metric": {"name": "epoch/val_top1", "goal": "maximize"},
        "parameters": {
            "optim.lr": {"values": [0.01, 0.02]},
            "train.label_smoothing": {"min": 0.0, "max": 0.2},
        },
        "run_cap": 1,
    }


def _plan(world: World, draw: random.Random) -> Case:
    """A good file with one value, at any depth, taken away or replaced."""
    tree = plan(world)
    place: Any = tree
    path = []
    while True:
        key = draw.choice(sorted(place))
        path.append(key)
        if not isinstance(place[key], dict) or draw.random() < 0.3:
            break
        place = place[key]
    ways: dict[str, Callable[[], Any]] = {
        "taken away": lambda: place.pop(key),
        "replaced": lambda: place.__setitem__(key, draw.choice(ODD)),
        "beside another": lambda: place.__setitem__("surplus", draw.choice(ODD)),
    }
    way = draw.choice(sorted(ways))
    ways[way]()
    return _case(f"{'.'.join(path)} {way}", yaml.safe_dump(tree).encode())


def _text(world: World, draw: random.Random) -> Case:
    way, content = damaged(yaml.safe_dump(plan(world)).encode(), draw)
    return _case(way, content)


def _journal(world: World, draw: random.Random) -> Case:
    """A sweep of one trial that goes on to a second one, with one of its files damaged in between."""
    seed = draw.randrange(2**32)

    def body(folder: Path) -> str:
        (folder / "s.yaml").write_text(yaml.safe_dump(plan(world) | {"run_cap": 2}))
        words = ["sweep", "s.yaml", f"run.root={folder / 'runs'}"]
        if call(folder, *words, "--trials", "1").code != 0:
            raise RuntimeError("the good sweep does not run")
        again = random.Random(seed)
        found = [
            path for path in sorted((folder / "runs").rglob("*")) if path.is_file() and path.suffix != ".pt"
        ]
        path = again.choice([path for path in found if path.stat().st_size])
        path.write_bytes(damaged(path.read_bytes(), again)[1])
        saved = folder / "saved"
        shutil.copytree(folder / "runs", saved)
        return judge(call(folder, *words, "--trials", "2"))

    return Case(f"a file of the sweep damaged ({seed})", body)


def _case(what: str, content: bytes) -> Case:
    def body(folder: Path) -> str:
        (folder / "s.yaml").write_bytes(content)
        return judge(call(folder, "sweep", "s.yaml", "--trials", "1", f"run.root={folder / 'runs'}"), _right)

    return Case(what, body)


def _right(outcome: Outcome) -> str | None:
    return None if "NaN" not in outcome.stdout else "NaN in JSON"
