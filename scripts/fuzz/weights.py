"""Files of pretrained weights."""

import io
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import Case, Outcome, call, damaged, judge
from safetensors.torch import save
from world import World

Tensors = dict[str, Any]


class Planted:
    """A pickle that leaves a file behind when it is loaded carelessly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    good = torch.load(world.run / "checkpoints" / "best.pt", weights_only=True)["model"]
    good = {name.removeprefix("backbone."): tensor for name, tensor in good.items()}
    while True:
        yield draw.choice([_tensors, _tensors, _wrapped, _damaged, _planted])(world, dict(good), draw)


def _bytes(value: Any, kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "safetensors":
        return save({name: tensor.contiguous().clone() for name, tensor in value.items()})
    if kind == "old":
        torch.save(value, stream, _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        return pickle.dumps(value)
    else:
        torch.save(value, stream)
    return stream.getvalue()


def _tensors(world: World, good: Tensors, draw: random.Random) -> Case:
    """Some tensors changed."""
    names = draw.sample(sorted(good), draw.choice([1, 3, len(good)]))
    ways: dict[str, Callable[[torch.Tensor], Any]] = {
        "NaN": lambda tensor: torch.full_like(tensor.float(), float("nan")),
        "infinite": lambda tensor: torch.full_like(tensor.float(), float("inf")),
        "zeros": torch.zeros_like,
        "int8": lambda tensor: tensor.to(torch.int8),
        "bool": lambda tensor: tensor != 0,
        "complex": lambda tensor: tensor.to(torch.complex64),
        "half": lambda tensor: tensor.half(),
        "double": lambda tensor: tensor.double(),
        "of another shape": lambda tensor: tensor.flatten()[:-1] if tensor.numel() > 1 else tensor.repeat(2),
        "empty": lambda tensor: tensor.flatten()[:0],
        "scalars": lambda tensor: tensor.flatten()[0].clone(),
    }
    way, kind = draw.choice(sorted(ways)), draw.choice(["pth", "safetensors", "old"])
    changed = {name: ways[way](tensor) if name in names else tensor for name, tensor in good.items()}
    exact = way in {"double"}
    return _case(
        world,
        f"{len(names)} of {len(good)} tensors: {way}",
        _bytes(changed, kind),
        kind,
        good if exact else None,
    )


def _wrapped(world: World, good: Tensors, draw: random.Random) -> Case:
    """The usual wrappings and prefixes, and unusual ones."""
    ways: dict[str, Callable[[], Any]] = {
        "state_dict": lambda: {"state_dict": good},
        "model": lambda: {"model": good},
        "model.state_dict": lambda: {"model": {"state_dict": good}},
        "module.": lambda: {f"module.{name}": tensor for name, tensor in good.items()},
        "another prefix": lambda: {f"x.y.{name}": tensor for name, tensor in good.items()},
        "a list": lambda: list(good.values()),
        "nothing": dict,
        "one tensor": lambda: torch.zeros(3),
        "a number": lambda: 3,
        "other names": lambda: {f"x{number}": tensor for number, tensor in enumerate(good.values())},
        "a surplus tensor": lambda: {**good, "surplus": torch.zeros(1)},
        "numbers as names": lambda: dict(enumerate(good.values())),
        "lists for tensors": lambda: {name: tensor.tolist() for name, tensor in good.items()},
        "half of them": lambda: dict(list(good.items())[::2]),
    }
    way = draw.choice(sorted(ways))
    return _case(world, f"wrapped: {way}", _bytes(ways[way](), draw.choice(["pth", "old"])), "pth", None)


def _damaged(world: World, good: Tensors, draw: random.Random) -> Case:
    kind = draw.choice(["pth", "safetensors", "old"])
    way, content = damaged(_bytes(good, kind), draw)
    exact = good if kind == "pth" else None  # the other two have no checksums
    return _case(world, f"{kind}, {way}", content, kind, exact)


def _planted(world: World, good: Tensors, draw: random.Random) -> Case:
    kind = draw.choice(["pth", "old", "pickle"])
    name = draw.choice(sorted(good))
    value = draw.choice([Planted(), {"state_dict": good, "x": Planted()}, {**good, name: Planted()}])
    return _case(world, f"{kind} with a planted call", _bytes(value, kind), "pth", None)


def _case(world: World, what: str, content: bytes, kind: str, exact: Tensors | None) -> Case:
    """exact: the weights that have to arrive if the file is taken; None: finite ones."""
    suffix = {"safetensors": "safetensors"}.get(kind, "pth")

    def body(folder: Path) -> str:
        (folder / f"w.{suffix}").write_bytes(content)
        words = world.overrides(folder, f"model.weights={folder / f'w.{suffix}'}", "run.name=new")
        words = [word for word in words if not word.startswith(("data.root=", "model.pretrained="))]
        words.append(f"data.root={world.folder / 'data'}")
        outcome = call(folder, "train", *words, "train.max_steps=1", "optim.lr=1e-12", "optim.weight_decay=0")
        return judge(outcome, lambda outcome: _right(folder, exact, outcome))

    return Case(what, body)


def _right(folder: Path, exact: Tensors | None, outcome: Outcome) -> str | None:  # noqa: ARG001
    if (folder / "ran").exists():
        return "code from the file ran"
    model = torch.load(folder / "runs" / "new" / "checkpoints" / "last.pt", weights_only=True)["model"]
    if not all(torch.isfinite(tensor).all() for tensor in model.values()):
        return "the model has weights that are not finite"
    body = {
        name.removeprefix("backbone."): tensor
        for name, tensor in model.items()
        if name.startswith("backbone.")
    }
    learned = {
        name
        for name in body
        if name.endswith("weight") and body[name].ndim > 1 and not name.startswith("fc.")
    }
    if exact and not all(torch.allclose(body[name], exact[name].float(), atol=1e-6) for name in learned):
        return "other weights than the file's"
    return None
