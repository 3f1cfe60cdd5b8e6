"""How uncertain a number is: 95 % intervals, paired tests of two models, and their adjustment for several tests."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, ttest_ind, ttest_rel

from pipeline.common import seeding

LEVEL = 0.95
RESAMPLES = 2_000
CHUNK = 100  # resamples at a time: 5,794 images take 5 MB,
CHUNK_ELEMENTS = 5_000_000  # and more images take 40 MB

Floats = npt.NDArray[np.float64]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927), as scipy computes it; (0, 1) without trials."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def resamples(n: int, count: int = RESAMPLES) -> Iterator[Floats]:
    """The bootstrap (Efron 1979) as weights: how often a resample contains each of n images, float64 [chunk, n].

    The mean of a resample is `weights @ values / n`. The random draws depend on n alone, so the same images
    have the same intervals, and two models are compared over the same resamples.
    """
    random = seeding.generator("bootstrap", n)
    chunk = max(1, min(CHUNK, CHUNK_ELEMENTS // n))
    for start in range(0, count, chunk):
        rows = min(chunk, count - start)
        images = random.integers(0, n, size=(rows, n))
        images += n * np.arange(rows)[:, None]
        yield np.bincount(images.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def percentiles(values: Floats) -> tuple[float, float]:
    """The middle 95 % of the values of R resamples, [R]; NaN, a resample without the value, is left out."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def seed_resamples(seeds: int, group: str = "") -> Floats:
    """The bootstrap over seeds as weights that sum to 1: float64 [RESAMPLES, seeds].

    A resample draws S - 1 of the S seeds with replacement, so that a mean varies by s^2 / S over resamples, as it
    should: S draws would give (S - 1) / S of that, too little of few seeds (Rao and Wu 1988). One is always drawn.

    Args:
        group: seeds of other groups are drawn independently.
    """
    drawn = max(1, seeds - 1)
    random = seeding.generator("bootstrap of seeds", seeds, group)
    return np.asarray(
        random.multinomial(drawn, np.full(seeds, 1 / seeds), size=RESAMPLES) / drawn, np.float64
    )


def over_seeds(by_run: Floats, group: str = "") -> Floats:
    """Resamples of a mean over runs, over seeds and images together: [R].

    Both are drawn anew in each resample, and independently (Owen 2007, "The pigeonhole bootstrap"): an image is as hard
    for all runs, and a run as good on all images, so neither are images of several runs so many images, nor is a seed
    more than one draw.

    Args:
        by_run: [R, S], the value of each run over the images of each of `resamples`.
    """
    return np.asarray((by_run * seed_resamples(by_run.shape[1], group)).sum(axis=1), np.float64)


def mean_intervals(values: Floats) -> list[tuple[float, float]]:
    """Bootstrap intervals of the means over images of the columns of `values`, [n, K]."""
    means = np.vstack([weights @ values / len(values) for weights in resamples(len(values))])
    return [percentiles(column) for column in means.T]


def difference(a: Floats, b: Floats) -> tuple[float, float, float]:
    """The mean of b - a over images, and its 95 % interval by the paired bootstrap.

    Args:
        a, b: float64 [n], two models' results on the same images: 1 right, 0 wrong, or the mean of several runs.
    """
    gain = b - a
    ((low, high),) = mean_intervals(gain[:, None])
    return float(gain.mean()), low, high


def difference_over_seeds(a: Floats, b: Floats, *, paired: bool) -> tuple[float, float]:
    """The 95 % interval of the mean of b - a over seeds and images together (`over_seeds`), over the same images.

    Args:
        a, b: float64 [S, n], a row a run: 1 right, 0 wrong.
        paired: whether the rows are of the same seeds, which are then drawn together.
    """
    if paired:
        gain = b - a
        by_run = np.vstack([weights @ gain.T / gain.shape[1] for weights in resamples(gain.shape[1])])
        return percentiles(over_seeds(by_run))
    both = np.vstack([a, b])
    by_run = np.vstack([weights @ both.T / both.shape[1] for weights in resamples(both.shape[1])])
    return percentiles(over_seeds(by_run[:, len(a) :], "b") - over_seeds(by_run[:, : len(a)], "a"))


def mcnemar(only_a: int, only_b: int) -> float:
    """The p-value of McNemar's exact test (1947).

    Under the null hypothesis an image that only one of two models predicts right is equally likely to be either's:
    a two-sided binomial test for any number of such images, without an approximation. 1 without any.

    Args:
        only_a, only_b: number of images that only model a, only model b predicts right.
    """
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b).pvalue)


def p_over_images(a: Floats, b: Floats) -> float:
    """The p-value of the paired t-test over images, for means of several runs; 1 without any difference."""
    return 1.0 if np.array_equal(a, b) else float(ttest_rel(a, b).pvalue)


def p_over_seeds(a: Sequence[float], b: Sequence[float]) -> float:
    """The p-value of Welch's t-test (1947) between the accuracies of two sets of runs, two or more each.

    Without any variation within the sets it is 1 when their accuracies are equal, and 0 otherwise.
    """
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return float(a[0] == b[0])
    return float(ttest_ind(a, b, equal_var=False).pvalue)


def p_over_paired_seeds(a: Sequence[float], b: Sequence[float]) -> float:
    """The p-value of the paired t-test between the accuracies of two sets of runs with the same seeds, in their order.

    Without any variation of the differences it is 1 when they are 0, and 0 otherwise.
    """
    gain = np.subtract(b, a)
    if np.ptp(gain) < 1e-12:
        return float(abs(gain[0]) < 1e-12)
    return float(ttest_rel(a, b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for the number of tests (Holm 1979), in their order."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    return [float(p) for p in np.minimum(adjusted, 1)]
