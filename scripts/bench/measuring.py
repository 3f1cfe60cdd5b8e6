"""What every part of the bench works with: pairs of timings, and what each of them came to."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pipeline.common import hardware
from pipeline.config.load import load_config
from pipeline.config.schema import Config

ROUNDS = 3
DRAWN = (
    "data.source=synthetic",
    "data.synthetic={species: 10, images_per_species: 20, train_per_species: 15, long_side_px: 500}",
)


@dataclass(frozen=True)
class Options:
    """What the command line says of a bench."""

    overrides: tuple[str, ...]
    """`section.key=value` of every configuration: the archive of photographs, weights"""
    folder: Path
    """prepared data, runs, and environments of contestants, kept between calls"""
    tiny: bool = False
    """as small as it can be: whether the bench works, and no figure worth a word"""
    minutes: float = 30
    """that the contest may take, in all"""

    @property
    def has_data(self) -> bool:
        """Whether the user named data; else images are drawn."""
        return any(word.startswith("data.") for word in self.overrides)

    def config(self, *overrides: str, recipe: Path | None = None) -> Config:
        """A configuration of the bench's data, with `overrides` before those of the command line."""
        drawn = () if self.has_data else DRAWN
        rooms = (f"data.root={self.folder / 'data'}", f"run.root={self.folder / 'runs'}")
        return load_config(recipe, [*rooms, *drawn, *overrides, *self.overrides])


@dataclass(frozen=True)
class Measurement:
    """One thing measured, beside what it is measured against."""

    part: str
    what: str
    ours: float
    unit: str
    """of `ours` and `other`: images/s, s, MiB, ..."""
    against: str = ""
    """what `other` is"""
    other: float | None = None
    ratio: float | None = None
    """what the goal is about: the median over pairs; None for a goal about `ours` itself"""
    lowest: float | None = None
    highest: float | None = None
    pairs: int = 1
    goal: float | None = None
    """None: measured for its own sake"""
    better: Literal["at least", "at most"] = "at least"
    note: str = ""
    is_complete: bool = True
    """False where something that belongs to it could not be measured; `note` says what"""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        reached = self.ours if self.ratio is None else self.ratio
        return reached >= self.goal if self.better == "at least" else reached <= self.goal


def machine() -> dict[str, str]:
    """What the figures belong to: processor, versions, commit, day, and the load before a part began."""
    processor = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=False
    )
    versions = {name: version(name) for name in ("torch", "torchvision", "timm")}
    return {
        "processor": processor,
        "cores": str(hardware.cores()),
        "Python": sys.version.split()[0],
        **versions,
        "commit": commit.stdout.strip() or "unknown",
        "day": time.strftime("%Y-%m-%d"),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def in_pairs(ours: Callable[[], float], other: Callable[[], float], rounds: int = ROUNDS) -> dict[str, Any]:
    """Run both in turn; medians of each, and of the ratios ours / other, as a `Measurement` has them."""
    pairs = [(ours(), other()) for _ in range(rounds)]
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    return {
        "ours": mine,
        "other": theirs,
        "ratio": statistics.median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "pairs": rounds,
    }


def of_runs(values: Iterable[float]) -> dict[str, Any]:
    """The median of a figure over runs, the lowest, the highest and their number, as a `Measurement` has them."""
    ordered = sorted(values)
    return {
        "ours": statistics.median(ordered),
        "lowest": ordered[0],
        "highest": ordered[-1],
        "pairs": len(ordered),
    }


def images_per_s(images: int, run: Callable[[], object]) -> float:
    """Images a second of wall time."""
    start = time.perf_counter()
    run()
    return images / (time.perf_counter() - start)


def in_a_process(module: str, arguments: dict[str, Any], threads: int | None = None) -> Any:
    """What `module.side(**arguments)` returns in a fresh process, through JSON: one side of a pair.

    Args:
        threads: of OpenMP; None for one a core.
    """
    code = f"import {module}, json, sys; print(json.dumps({module}.side(**json.loads(sys.argv[1]))))"
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1])])
    environment = os.environ | {"PYTHONPATH": paths}
    if threads is not None:
        environment |= dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)
        )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
