"""How well a score tells unknown classes from known ones, with intervals; and the threshold that keeps known images.

Images of one class are alike: all intervals are bootstraps over whole classes (Efron 1979; Field & Welsh 2007), so that
they say how it would be with other classes, known and unknown.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from pipeline.evaluation import statistics

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Statistic = Callable[[Floats], Floats]
"""weights of the classes, float64 [r, G] -> its value for each of r resamples, [r]"""


class Scored(NamedTuple):
    """Scores float64 [n] of images, and the class of each, int64 [n], from 0."""

    score: Floats
    group: Ints


class WithInterval(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def auroc(comparisons: Sequence[tuple[Scored, Scored]]) -> WithInterval:
    """The probability that a known image has the higher score than an unknown one, 0..1; a tie counts half.

    Args:
        comparisons: known and unknown images; of several comparisons only images of the same one are compared. Equal
            groups are the same class in all of them.
    """
    counted = [(known, unknown, _wins(known, unknown)) for known, unknown in comparisons]
    groups = 1 + max(int(scored.group.max()) for pair in comparisons for scored in pair)

    def of(weights: Floats) -> Floats:
        """Weights of the classes [r, G] -> [r]."""
        won, compared = np.zeros(len(weights)), np.zeros(len(weights))
        for known, unknown, (of_known, of_unknown, wins) in counted:
            a, b = weights[:, of_known], weights[:, of_unknown]
            won += ((a @ wins) * b).sum(axis=1)
            compared += weights[:, known.group].sum(axis=1) * weights[:, unknown.group].sum(axis=1)
        return _ratio(won, compared)

    return _with_interval(of, groups)


def share(chosen: npt.NDArray[np.bool_], group: Ints) -> WithInterval:
    """The share of images that are chosen, 0..1: bool [n], their classes int64 [n]."""
    _, position, sizes = np.unique(group, return_inverse=True, return_counts=True)
    counts = np.bincount(position, chosen)
    return _with_interval(lambda weights: _ratio(weights @ counts, weights @ sizes), len(sizes))


def false_positive_rate(known: Scored, unknown: Scored, kept: float = 0.95) -> WithInterval:
    """FPR95: the share of unknown images that pass a threshold which just keeps 95 % of these known images, 0..1."""
    order = np.argsort(known.score, kind="stable")[::-1]
    scores, of_known = known.score[order], known.group[order]
    groups = 1 + int(max(known.group.max(), unknown.group.max()))

    def of(weights: Floats) -> Floats:
        cumulated = weights[:, of_known].cumsum(axis=1)
        at = (cumulated < kept * cumulated[:, -1:] - 1e-9).sum(axis=1)  # the first one that suffices
        thresholds = scores[np.minimum(at, len(scores) - 1)]
        of_unknown = weights[:, unknown.group]
        passed = (of_unknown * (unknown.score >= thresholds[:, None])).sum(axis=1)
        there = of_unknown.sum(axis=1) * (cumulated[:, -1] > 0)
        return _ratio(passed, there)

    return _with_interval(of, groups)


def threshold(known: Floats, kept: float) -> float:
    """The score that a further known image reaches with probability `kept`, at the least (split conformal prediction).

    The k-th lowest score of n validation images, k the whole part of (n + 1) (1 - kept) (Vovk et al. 2005; Lei et al.
    2018), which holds on average over validation sets, where the further image is drawn as these were; 1 for k = 0.

    Args:
        known: float64 [n], of images that no score has learned from.
    """
    return float(np.sort(known)[_place(len(known), kept) - 1])


def promised(n: int, kept: float) -> WithInterval:
    """The share of further known images that `threshold` of n validation images keeps: its mean, and 95 % of its values.

    It is distributed as Beta(n + 1 - k, k).
    """
    k = _place(n, kept)
    low, high = beta.interval(statistics.LEVEL, n + 1 - k, k)
    return WithInterval((n + 1 - k) / (n + 1), float(low), float(high))


def needed(kept: float) -> int:
    """The number of validation images from which a threshold can be promised to keep this share."""
    return int(np.ceil(1 / (1 - kept) - 1e-9)) - 1


def _place(n: int, kept: float) -> int:
    return max(1, int((n + 1) * (1 - kept) + 1e-9))


def _wins(known: Scored, unknown: Scored) -> tuple[Ints, Ints, Floats]:
    """The classes that occur [K] and [U], and the wins of known over unknown images for each two of them [K, U]."""
    of_known = np.unique(known.group)
    of_unknown, position = np.unique(unknown.group, return_inverse=True)
    wins = np.empty((len(of_known), len(of_unknown)))
    for row, group in enumerate(of_known):
        scores = np.sort(known.score[known.group == group])
        above = len(scores) - np.searchsorted(scores, unknown.score, side="right")
        equal = len(scores) - np.searchsorted(scores, unknown.score, side="left") - above
        wins[row] = np.bincount(position, above + equal / 2, len(of_unknown))
    return of_known, of_unknown, wins


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """NaN where there is nothing to divide by."""
    ratio: Floats = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=ratio, where=denominator > 0)


def _with_interval(of: Statistic, groups: int) -> WithInterval:
    (value,) = of(np.ones((1, groups)))
    low, high = statistics.percentiles(
        np.concatenate([of(weights) for weights in statistics.resamples(groups)])
    )
    return WithInterval(float(value), low, high)
