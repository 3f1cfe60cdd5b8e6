"""What the runs of a contest come to. Validation chooses: the epoch, the learning rate, the length of the run."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Clock = Literal["wall_s", "cpu_s"]


class Point(NamedTuple):
    """The end of an epoch: seconds since the process began, and what the network is worth then, 0..1."""

    wall_s: float
    cpu_s: float
    val_top1: float
    test_top1: float


class Result(NamedTuple):
    """A finished run of a contestant."""

    contestant: str
    lr: float
    epochs: int
    """for which its schedule was made"""
    seed: int
    ready: tuple[float, float] | None
    """wall and processor seconds when the first epoch began; None: not known"""
    points: tuple[Point, ...]
    recipe: str = ""
    """digest of the recipe of a run of ours"""


class Score(NamedTuple):
    """What a contestant has reached by a moment."""

    test_top1: float
    """mean over seeds, 0..1"""
    val_top1: float
    seconds: float
    """at which it was reached, mean over seeds"""
    lr: float
    epochs: int
    seeds: int


def best_point(points: Iterable[Point], clock: Clock, until_s: float = float("inf")) -> Point | None:
    """What validation chooses of the epochs that have ended by a moment: the best, of several the last; None: none."""
    ended = [point for point in points if getattr(point, clock) <= until_s]
    return max(reversed(ended), key=lambda point: point.val_top1, default=None)


def score(results: Iterable[Result], clock: Clock, until_s: float = float("inf")) -> Score | None:
    """What one contestant has by a moment: of its settings (rate, epochs) the one with the best validation.

    A setting's accuracies are the means over its seeds, and it has none before each of them has ended an epoch: the
    quickest seed does not speak for the others. None: no setting has.
    """
    settings: dict[tuple[float, int], list[Point | None]] = defaultdict(list)
    for result in results:
        settings[result.lr, result.epochs].append(best_point(result.points, clock, until_s))
    whole = {
        setting: [point for point in points if point] for setting, points in settings.items() if all(points)
    }
    scores = [
        Score(
            statistics.mean(point.test_top1 for point in points),
            statistics.mean(point.val_top1 for point in points),
            statistics.mean(getattr(point, clock) for point in points),
            lr,
            epochs,
            len(points),
        )
        for (lr, epochs), points in whole.items()
    ]
    return max(scores, key=lambda one: (one.val_top1, -one.seconds), default=None)


def moments(results: Iterable[Result], clock: Clock) -> list[float]:
    """The seconds at which a score may change, sorted."""
    return sorted({getattr(point, clock) for result in results for point in result.points})


def curve(results: Sequence[Result], clock: Clock) -> list[tuple[float, float]]:
    """Seconds and test accuracy (0..1) of one contestant, wherever the accuracy changes."""
    found: list[tuple[float, float]] = []
    for moment in moments(results, clock):
        one = score(results, clock, moment)
        if one and (not found or one.test_top1 != found[-1][1]):
            found.append((moment, one.test_top1))
    return found


def seconds_to(results: Sequence[Result], accuracy: float, clock: Clock) -> float | None:
    """The first moment from which on one contestant is never below a test accuracy; None: it does not get there."""
    reached = None
    for moment, test_top1 in curve(results, clock):
        if test_top1 < accuracy:
            reached = None
        elif reached is None:
            reached = moment
    return reached


def epoch_seconds(results: Iterable[Result], clock: Clock) -> tuple[float, float] | None:
    """Seconds before the first epoch and seconds of an epoch, medians over one contestant's runs; None: no run."""
    column = 0 if clock == "wall_s" else 1
    known = [result for result in results if result.ready and result.points]
    if not known:
        return None
    begins = [result.ready[column] for result in known if result.ready]
    lasts = [getattr(result.points[-1], clock) for result in known]
    lengths = [
        (last - begin) / result.epochs for last, begin, result in zip(lasts, begins, known, strict=True)
    ]
    return statistics.median(begins), statistics.median(lengths)


def epochs_within(horizon_s: float, begin_s: float, epoch_s: float) -> int:
    """How many epochs end within a horizon, at least one."""
    return max(1, int((horizon_s - begin_s) / epoch_s))
