"""What every driver works with: what it is told, its clock, and what it writes after each epoch.

A driver is one script, run in the environment of its library with the file of a task as its only argument. Linux only:
processor seconds are read in /proc.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
Predicted = tuple[Sequence[int], Sequence[int]]
"""true labels, predicted labels"""


def processor_s(root: int) -> float:
    """Processor seconds of a process and all that it started, with those of its children that have ended."""
    parents, seconds = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended just now, and its parent has its seconds
            continue
        process = int(folder.name)
        parents[process] = int(fields[1])
        seconds[process] = sum(map(int, fields[11:15])) / TICKS_PER_S
    wanted = {root}
    while more := {child for child, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    return sum(seconds.get(process, 0.0) for process in wanted)


class Recorder:
    """A task and its clock.

    task: contestant, tuned, lr, seed, epochs, photographs (a folder with train, val and test), model (timm's name),
    started (time.time() when the process was started), out (the file to write).
    """

    def __init__(self) -> None:
        """Raises: IndexError: no file was named."""
        self.task: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
        self.photographs = Path(self.task["photographs"])
        self.classes = len(list((self.photographs / "train").iterdir()))
        self.cores = len(os.sched_getaffinity(0))
        self._paused_wall_s = self._paused_cpu_s = 0.0
        self._points: list[dict[str, float]] = []
        self._ready_s: tuple[float, float] | None = None

    def __getattr__(self, name: str) -> Any:
        """A field of the task: recorder.lr, recorder.epochs."""
        return self.task[name]

    def _now(self) -> tuple[float, float]:
        wall, cpu = time.time() - self.started, processor_s(os.getpid())
        return wall - self._paused_wall_s, cpu - self._paused_cpu_s

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the clock while the block runs."""
        wall, cpu = self._now()
        yield
        later_wall, later_cpu = self._now()
        self._paused_wall_s += later_wall - wall
        self._paused_cpu_s += later_cpu - cpu

    def training_begins(self) -> None:
        """Say that all is imported and loaded: what comes is the first epoch."""
        self._ready_s = self._now()

    def epoch(self, val_top1: float, test: Callable[[], Predicted]) -> None:
        """Write the moment, the validation accuracy (0..1), and, with the clock stopped, the test accuracy."""
        wall, cpu = self._now()
        with self.stopped():
            point = {"wall_s": wall, "cpu_s": cpu, "val_top1": float(val_top1), "test_top1": top1(test())}
        self._points.append(point)
        content = {"ready": self._ready_s, "points": self._points, "versions": versions()}
        Path(self.out).write_text(json.dumps(content))
        print(f"epoch {len(self._points)}: {point}", flush=True)


def versions() -> dict[str, str]:
    """Those of the libraries that are loaded."""
    names = ("torch", "torchvision", "timm", "fastai", "transformers", "accelerate", "autogluon.multimodal")
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in names}
    return {name: str(version) for name, version in found.items() if version}


def top1(answers: Predicted) -> float:
    """The share of right answers, 0..1."""
    truth, predicted = answers
    return sum(int(a) == int(b) for a, b in zip(truth, predicted, strict=True)) / len(truth)
