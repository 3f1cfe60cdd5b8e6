"""Kills at any moment: the same command ends as if nothing had happened."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness import SECONDS, STOPPED, Call, Case, Failed, call
from world import World


def cases(world: World, draw: random.Random) -> Iterator[Case]:
    """Endless; the same for the same stream."""
    while True:
        verb = draw.choice(["train", "train", "data", "eval", "audit"])
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        yield _case(world, verb, number, [draw.expovariate(1.5) for _ in range(draw.choice([1, 1, 3]))])


def _case(world: World, verb: str, number: signal.Signals, moments_s: list[float]) -> Case:
    def body(folder: Path) -> str:
        if verb != "data":
            world.copy(folder, "data", "runs")
        words = [verb, *world.overrides(folder)]
        if verb == "train":
            words += ["run.name=new", "train.checkpoint_every_steps=1"]
        for moment_s in moments_s:
            process = Call(folder, words)
            time.sleep(moment_s)
            process.kill(number)
            outcome = process.end(SECONDS)
            allowed = {0, -number, STOPPED, None if number == signal.SIGKILL else STOPPED}
            if outcome.code not in allowed:
                raise Failed(f"after {moment_s:.2f} s: {outcome.explain()}")
            if outcome.survivors:
                raise Failed(f"left a process behind: {outcome.explain()}")
        again = call(folder, *words)
        if again.code != 0:
            raise Failed(f"it does not go on: {again.explain()}")
        if wrong := same_as_undisturbed(world, folder, verb):
            raise Failed(f"{wrong}: {again.explain()}")
        return "right"

    return Case(f"{verb}, {number.name} after {', '.join(f'{s:.2f}' for s in moments_s)} s", body)


def same_as_undisturbed(world: World, folder: Path, verb: str, run: str = "new") -> str | None:
    """What differs from the good world, in what a verb makes."""
    if verb == "train":
        models = [
            torch.load(path / "checkpoints" / "last.pt", weights_only=True)["model"]
            for path in (world.run, folder / "runs" / run)
        ]
        return (
            None if all(torch.equal(models[0][key], models[1][key]) for key in models[0]) else "other weights"
        )
    if verb == "data":
        stores = [next((root / "data").glob("*/store-*/pixels.bin")) for root in (world.folder, folder)]
        return None if np.array_equal(*(np.fromfile(path, np.uint8) for path in stores)) else "other pixels"
    if verb == "eval":
        tables = [
            (root / "runs" / "good" / "eval" / "test" / "predictions.csv").read_bytes()
            for root in (world.folder, folder)
        ]
        return None if tables[0] == tables[1] else "other predictions"
    return None
