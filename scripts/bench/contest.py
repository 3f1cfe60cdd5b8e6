"""Accuracy against seconds: other ways to fine-tune and ours, with the same photographs, network and weights.

Each run is fine-tuning from a folder of unpacked photographs to the end of its epochs, in a process of its own with as
many threads as cores, one at a time. It validates after each epoch; then its clock stops, and it predicts the test
photographs. What a contestant has at a moment is the test accuracy of what validation had chosen by then, of all its
epochs, learning rates and lengths. The test never chooses.

A contest takes hours: each run leaves a file, and a call runs what is missing, as far as `--minutes` go. `taskset -c 0`
before the command gives every run one core. The clock is wall seconds where all runs had an idle machine with all its
cores, and processor seconds elsewhere.
"""

from collections.abc import Iterator
from pathlib import Path

from contest_plot import UNITS, plot
from contest_runs import ABSENT, CONTESTANTS, OURS, Contest, by_contestant, is_idle, run_missing
from contest_scores import Clock, Result, Score, moments, score, seconds_to
from measuring import Measurement, Options

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "lp_ft_cpu.yaml"
PICTURE = ROOT / "docs" / "benchmarks_contest.png"
HORIZON_S = 300
EQUAL_S = (60, 120, 300, 600)
SPARE = 1.2
"""no accuracy is told at a moment that many times beyond the end of the longest run"""
FASTER_THAN_DEFAULTS, FASTER_THAN_TUNED, POINTS_AT_120_S = 5, 2, 3


def measure(options: Options) -> Iterator[Measurement]:
    """Run what is missing, then say what all runs so far come to."""
    contest = Contest(options, RECIPE, "wall_s" if is_idle() else "cpu_s", HORIZON_S)
    missing = run_missing(contest, options.minutes)
    results = by_contestant(contest.results())
    yield _done(results, contest, missing)
    clock: Clock = "wall_s" if all(one.is_idle for found in results.values() for one in found) else "cpu_s"
    yield from verdicts(results, clock)
    if not options.tiny and len(results) > 1:
        plot(results, OURS, clock, PICTURE)


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


def _done(results: dict[str, list[Result]], contest: Contest, missing: int) -> Measurement:
    runs = [f"{name}: {len(found)}" for name, found in results.items()]
    failed = [f"{name} could not be run: {why}" for name, why in contest.problems.items()]
    return Measurement(
        "contest",
        "finished runs",
        sum(map(len, results.values())),
        "runs",
        note="; ".join(
            [", ".join(runs), *failed, ABSENT, *[f"{missing} did not fit into the time"] * (missing > 0)]
        ),
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
    others = {name: one.test_top1 for name, one in scores.items() if name != OURS}
    if OURS not in scores:
        return None
    mine, best = scores[OURS].test_top1, max(others.values(), default=0.0)
    listed = sorted(others.items(), key=lambda item: -item[1])
    return Measurement(
        "contest",
        f"test top-1 at {seconds} {UNITS[clock]}, ours less the best other's",
        ours=100 * (mine - best),
        unit="points",
        goal=POINTS_AT_120_S if seconds == 120 else 0,
        note=", ".join(f"{name} {100 * top1:.1f}" for name, top1 in [(OURS, mine), *listed]),
    )
