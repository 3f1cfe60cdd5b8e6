"""Accuracy against seconds: other ways to fine-tune and ours, with the same photographs, network and weights.

Each run is fine-tuning from a folder of unpacked photographs to the end of its epochs, in a process of its own on one
core with one thread, as many side by side as there are cores. It validates after each epoch; then its clock stops, and
it predicts the test photographs. What a contestant has at a moment is the test accuracy of what validation had chosen
by then, of all its epochs, learning rates and lengths. The test never chooses.

The clock is processor seconds, which other programs on the machine change little; a run's file holds wall seconds, too.
A contest takes hours: each run leaves a file, and a call runs what is missing, as far as `--minutes` go. A run whose
file is removed runs again; ours does, too, when its recipe has changed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from contest_plot import UNITS, plot
from contest_runs import ABSENT, CONTESTANTS, OURS, by_contestant
from contest_scores import Clock, Result, Score, moments, score, seconds_to
from contest_worker import CLOCK, DIE_WITH_US, Contest, Task
from measuring import Measurement, Options

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "fast.yaml"
PICTURE = ROOT / "docs" / "benchmarks_contest.png"
WORKER = Path(__file__).with_name("contest_worker.py")
HORIZON_S = 300
EQUAL_S = (60, 120, 300, 600)
SPARE = 1.2
"""no accuracy is told at a moment that many times beyond the end of the longest run"""
FASTER_THAN_DEFAULTS, FASTER_THAN_TUNED, POINTS_AT_120_S = 5, 2, 3


def measure(options: Options) -> Iterator[Measurement]:
    """Run what is missing, then say what all runs so far come to."""
    contest = Contest(options, RECIPE)
    problems = run_missing(options)
    results = by_contestant(contest.results())
    missing = len({run.contestant for run in contest.missing(HORIZON_S)})
    yield _done(results, problems, missing)
    yield from verdicts(results, CLOCK)
    if not options.tiny and len(results) > 1:
        plot(results, OURS, CLOCK, PICTURE)


def run_missing(options: Options) -> dict[str, str]:
    """Run what is missing, on each core one at a time; contestant -> why it could not be run."""
    workers = []
    for core in sorted(os.sched_getaffinity(0))[: 1 if options.tiny else None]:
        task = Task(
            options.overrides,
            str(options.folder),
            options.tiny,
            options.minutes,
            str(RECIPE),
            HORIZON_S,
            core,
        )
        command = [*DIE_WITH_US, sys.executable, WORKER, json.dumps(task._asdict())]
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    problems: dict[str, str] = {}
    for worker in workers:
        said, _ = worker.communicate()
        if worker.returncode:
            raise subprocess.CalledProcessError(worker.returncode, worker.args)
        problems |= json.loads(said.splitlines()[-1])
    return problems


def verdicts(results: dict[str, list[Result]], clock: Clock) -> Iterator[Measurement]:
    """Seconds to each contestant's own best, and accuracies at equal seconds."""
    ours = results.get(OURS, [])
    if not ours:
        return
    tuned = {one.name for one in CONTESTANTS if one.tuned}
    for name, found in results.items():
        if name != OURS and (best := score(found, clock)):
            yield _time_to(
                best, name, FASTER_THAN_TUNED if name in tuned else FASTER_THAN_DEFAULTS, ours, clock
            )
    longest_s = max((moments(found, clock)[-1] for name, found in results.items() if name != OURS), default=0)
    for seconds in (one for one in EQUAL_S if one <= SPARE * longest_s):
        scores = {name: score(found, clock, seconds) for name, found in results.items()}
        if one := _at(seconds, {name: found for name, found in scores.items() if found}, clock):
            yield one


def _done(results: dict[str, list[Result]], problems: dict[str, str], missing: int) -> Measurement:
    runs = ", ".join(f"{name}: {len(found)}" for name, found in results.items())
    failed = [f"{name} could not be run: {why}" for name, why in problems.items()]
    later = [f"of {missing} not all runs fitted into the time"] * (missing > 0)
    return Measurement(
        "contest",
        "finished runs",
        sum(map(len, results.values())),
        "runs",
        note="; ".join([runs, *failed, *later, ABSENT]),
        is_complete=not missing and not failed,
    )


def _time_to(best: Score, name: str, goal: float, ours: list[Result], clock: Clock) -> Measurement:
    reached = seconds_to(ours, best.test_top1, clock)
    last = score(ours, clock)
    assert last is not None
    note = f"lr {best.lr:g}, {best.epochs} epochs, {best.seeds} seeds; ours {last.seeds} seeds"
    return Measurement(
        "contest",
        f"{UNITS[clock]} to {100 * best.test_top1:.1f} % test top-1",
        ours=last.seconds if reached is None else reached,
        unit="s",
        against=name,
        other=best.seconds,
        ratio=0.0 if reached is None else best.seconds / reached,
        goal=goal,
        note=note
        if reached is not None
        else f"ours does not get there: {100 * last.test_top1:.1f} %; {note}",
    )


def _at(seconds: float, scores: dict[str, Score], clock: Clock) -> Measurement | None:
    if OURS not in scores:
        return None
    mine = scores[OURS].test_top1
    others = sorted((one.test_top1, name) for name, one in scores.items() if name != OURS)[::-1]
    if not others:
        what, note = f"test top-1 at {seconds} {UNITS[clock]}", "no other has ended an epoch by then"
        return Measurement("contest", what, ours=100 * mine, unit="%", note=note)
    return Measurement(
        "contest",
        f"test top-1 at {seconds} {UNITS[clock]}, ours less the best other's",
        ours=100 * (mine - others[0][0]),
        unit="points",
        goal=POINTS_AT_120_S if seconds == 120 else 0,
        note=", ".join(f"{name} {100 * top1:.1f} %" for top1, name in [(mine, OURS), *others]),
    )
