"""Plumage as a contestant: `data`, then `train`, each a process; its checkpoints are evaluated when the clock is off."""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "contestants"))

from recorder import processor_s

from pipeline.api import jobs
from pipeline.config.load import load_config
from pipeline.runs.directory import RunDirectory

POLL_S = 0.05


def run(
    recipe: Path, overrides: list[str], folder: Path, before: Sequence[str] = ()
) -> list[dict[str, float]]:
    """Points of a training from nothing: whenever `best.pt` changes, the moment and what it is worth.

    So a point is what validation had chosen by then. The commands run in `folder`, which is made anew.

    Args:
        recipe: the YAML file.
        overrides: `section.key=value` of the photographs, the weights, the seed.
        before: words before the command's own.

    Raises:
        subprocess.CalledProcessError: a command failed; what it said is in `stderr`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = [*overrides, f"data.root={folder / 'data'}", f"run.root={folder / 'runs'}", "run.name=contest"]
    config = load_config(recipe, words)
    best = RunDirectory(config.run_dir).checkpoint("best")
    start_wall_s, start_cpu_s = time.time(), _ended_s()
    command = [*before, sys.executable, "-m", "pipeline"]
    taken = [
        copy
        for verb in ("data", "train")
        for copy in _copies([*command, verb, "--config", str(recipe), *words], best, folder / f"{verb}.log")
    ]
    return [
        {
            "wall_s": wall_s - start_wall_s,
            "cpu_s": cpu_s - start_cpu_s,
            **{f"{split}_top1": _top1(config.run_dir, split, path) for split in ("val", "test")},
        }
        for wall_s, cpu_s, path in taken
    ]


def _copies(command: list[str], best: Path, log: Path) -> Iterator[tuple[float, float, Path]]:
    """Run a command; whenever `best` changes, the wall and processor seconds so far and a copy of it.

    A checkpoint is replaced as a whole, so a second name for its file is a copy that costs no time.
    """
    before_s, seen, ended = _ended_s(), None, False
    with (
        log.open("w", encoding="utf-8") as said,
        subprocess.Popen(command, stdout=said, stderr=said) as process,
    ):
        while not ended:
            ended = process.poll() is not None
            state = (best.stat().st_ino, best.stat().st_mtime_ns) if best.is_file() else None
            if state != seen:
                copy, seen = log.with_name(f"best-{time.time_ns()}.pt"), state
                os.link(best, copy)
                yield time.time(), _ended_s() if ended else before_s + processor_s(process.pid), copy
            time.sleep(0 if ended else POLL_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=log.read_text())


def _ended_s() -> float:
    """Processor seconds of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _top1(run_dir: Path, split: Any, checkpoint: Path) -> float:
    keys = {"eval.checkpoint": str(checkpoint), "report.write": False}
    with redirect_stdout(sys.stderr):
        return jobs.evaluate(run_dir, split, keys).top1
