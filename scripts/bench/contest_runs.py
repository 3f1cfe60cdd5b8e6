"""Who takes part in a contest, with which settings, what is run next, and the runs that are finished."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from contest_scores import Clock, Point, Result, epoch_seconds, epochs_within, score

OURS = "plumage"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Contestant:
    """A way to fine-tune, as one of contestants/run_DRIVER.py does it."""

    name: str
    driver: str
    rates: tuple[float, ...]
    """learning rates; the first is the default of its documentation"""
    environment: str = ""
    """of contestants/ENVIRONMENT.txt; empty: that of this program"""
    tuned: bool = False

    @property
    def first(self) -> tuple[float, int, int]:
        """Rate, seed and epochs of the run that shows how long an epoch takes."""
        return self.rates[0], SEEDS[0], 1


CONTESTANTS = (
    Contestant("timm, tuned", "timm", (0.02, 0.06, 0.007), tuned=True),
    Contestant("fastai", "fastai", (2e-3, 6e-3, 7e-4), "fastai"),
    Contestant("torchvision, tuned", "torchvision", (0.0125, 0.004, 0.04), tuned=True),
    Contestant("timm", "timm", (0.05, 0.15, 0.017)),
    Contestant("the article's script", "article", (2e-3, 6e-3, 7e-4)),
    Contestant("torchvision", "torchvision", (0.0125, 0.004, 0.04)),
    Contestant("Hugging Face Trainer", "huggingface", (5e-5, 5e-4, 1.5e-4), "huggingface"),
    Contestant("AutoGluon, medium_quality", "autogluon", (1e-4, 1e-3, 3e-4), "autogluon"),
)
ABSENT = "Ultralytics cannot take these weights: its YAML takes networks of torchvision, and this one is not among them"


class Run(NamedTuple):
    """What is run; of ours the recipe has the rate and the epochs, and here are zeros."""

    contestant: str
    lr: float
    seed: int
    epochs: int


def plan(
    contestants: Sequence[Contestant], results: Mapping[str, Sequence[Result]], clock: Clock, horizon_s: float
) -> Iterator[Run]:
    """What has not been run, the most telling first; to be asked anew after each run, for validation chooses the rate.

    Ours; each contestant's default rate, first for one epoch, which says how many fit into the horizon; the other
    rates; then the other seeds of what validation has chosen.
    """

    def due(name: str, lr: float, seed: int, epochs: int) -> Iterator[Run]:
        done = {(one.lr, one.seed, one.epochs) for one in results.get(name, ())}
        if (lr, seed, epochs) not in done:
            yield Run(name, lr, seed, epochs)

    whole = {}
    for one in contestants:
        first = [run for run in results.get(one.name, ()) if (run.lr, run.seed, run.epochs) == one.first]
        if pace := epoch_seconds(first, clock):
            whole[one.name] = epochs_within(horizon_s, *pace)
    yield from due(OURS, 0.0, SEEDS[0], 0)
    for one in contestants:
        yield from due(one.name, *one.first)
        if one.name in whole:
            yield from due(one.name, one.rates[0], SEEDS[0], whole[one.name])
    for one in contestants:
        for lr in one.rates[1:] if one.name in whole else ():
            yield from due(one.name, lr, SEEDS[0], whole[one.name])
    for seed in SEEDS[1:]:
        yield from due(OURS, 0.0, seed, 0)
        for one in contestants:
            if chosen := score(results.get(one.name, ()), clock):
                yield from due(one.name, chosen.lr, seed, chosen.epochs)


def read_results(folder: Path) -> list[Result]:
    """The results in a folder, one JSON each, sorted by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        points = tuple(Point(**point) for point in content["points"])
        ready = None if content["ready"] is None else tuple(content["ready"])
        fields = (content[name] for name in ("contestant", "lr", "epochs", "seed"))
        found.append(Result(*fields, ready, points, content.get("recipe", "")))
    return found


def by_contestant(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Contestant -> its results; ours first."""
    names = [OURS, *(one.name for one in CONTESTANTS)]
    grouped = {name: [one for one in results if one.contestant == name] for name in names}
    return {name: found for name, found in grouped.items() if found}
