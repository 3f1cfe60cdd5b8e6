"""Checkpoints that are damaged, or hold something else than a checkpoint."""

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import Case, Outcome, call, damaged, judge
from world import World

ODD: list[Any] = [
    None,
    -1,
    0,
    2**70,
    1.5,
    float("nan"),
    "x",
    [],
    {},
    True,
    torch.zeros(3),
    [torch.tensor(float("nan"))],
]


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    whole = {name: (world.run / "checkpoints" / f"{name}.pt").read_bytes() for name in ("last", "best")}
    while True:
        name = draw.choice(["last", "best"])
        if draw.random() < 0.5:
            way, content = damaged(whole[name], draw)
        else:
            way, content = _edited(whole[name], draw)
        yield _case(world, name, way, content, whole[name], draw)


def _edited(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A good checkpoint with one value, at any depth, taken away or replaced."""
    tree = torch.load(io.BytesIO(content), weights_only=True)
    place, path = tree, []
    while True:
        key = draw.choice(sorted(place, key=str))
        path.append(str(key))
        if not isinstance(place[key], dict) or not place[key] or draw.random() < 0.3:
            break
        place = place[key]
    ways: dict[str, Callable[[], None]] = {
        "taken away": lambda: place.pop(key),
        "replaced": lambda: place.__setitem__(key, draw.choice(ODD)),
        "beside another": lambda: place.__setitem__("surplus", draw.choice(ODD)),
    }
    if torch.is_tensor(place[key]):
        value = place[key]
        ways |= {
            "with NaN": lambda: place.__setitem__(key, value * float("nan")),
            "of another shape": lambda: place.__setitem__(key, torch.cat([value.flatten(), value.flatten()])),
            "as integers": lambda: place.__setitem__(key, value.to(torch.int8)),
        }
    way = draw.choice(sorted(ways))
    ways[way]()
    stream = io.BytesIO()
    torch.save(tree, stream)
    return f"{'.'.join(path)} {way}", stream.getvalue()


def _case(world: World, name: str, way: str, content: bytes, whole: bytes, draw: random.Random) -> Case:
    verb = {"last": draw.choice(["train", "train", "eval"]), "best": draw.choice(["eval", "predict"])}[name]

    def body(folder: Path) -> str:
        world.copy(folder, "data", "runs")
        path = folder / "runs" / "good" / "checkpoints" / f"{name}.pt"
        path.write_bytes(content)
        words = [verb, *world.overrides(folder, "report.write=false")]
        if verb == "train":  # on from the end of epoch 2
            words.append("train.epochs=2")
        if verb == "eval":
            words.append(f"eval.checkpoint={name}")
        if verb == "predict":
            words.insert(1, str(next(world.raw.glob("*/images/*/*.jpg"))))
        return judge(call(folder, *words), lambda outcome: _right(content, whole, outcome))

    return Case(f"{name}.pt: {way}; {verb}", body)


def _right(content: bytes, whole: bytes, outcome: Outcome) -> str | None:
    """What was taken has to have the very weights of the good checkpoint: all else is silently another model."""
    if "NaN" in outcome.stdout or "nan" in outcome.stdout:
        return f"not a number in the answer {outcome.stdout[:200]}"
    try:
        found, good = (torch.load(io.BytesIO(part), weights_only=True)["model"] for part in (content, whole))
    except Exception as error:
        return f"taken, though torch does not read it: {error!r}"
    same = found.keys() == good.keys() and all(torch.equal(found[key], good[key]) for key in good)
    return None if same else "other weights than the good checkpoint's were taken"
