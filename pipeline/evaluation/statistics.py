"""How uncertain a number is: 95 % intervals, tests of two models, and their adjustment for several tests."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, ttest_ind, ttest_rel
from scipy.stats import t as student

from pipeline.common import seeding

LEVEL = 0.95
RESAMPLES = 2_000
CHUNK = 100  # resamples at a time: 5,794 images take 5 MB,
CHUNK_ELEMENTS = 5_000_000  # and more images take 40 MB
NOTHING = 1e-20
"""a mean square below this share of the largest squared value is rounding, and is 0"""
LEAST_P = 1e-300
"""smaller p-values are this one"""

OVER_IMAGES = "McNemar's exact test over images"
PAIRED = (
    "t-test over seeds and images together, paired by seed (Dorfman, Berbaum and Metz 1992; Banerjee 1960)"
)
APART = "t-test over seeds and images together, of independent seeds (Dorfman, Berbaum and Metz 1992; Banerjee 1960)"
"""the tests of two models: of one run each; of several with the same seeds; of several otherwise"""

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


def difference_varies(a: Floats, b: Floats) -> bool:
    """Whether an interval of the mean of b - a, [n], tells anything: not of one image, nor where all differ alike."""
    return len(a) > 1 and bool((b - a).mean() == 0 or np.ptp(b - a) > 0)


class Estimate(NamedTuple):
    """A mean over seeds and images, or a difference of two.

    parts: (variance, degrees of freedom) of what the value's variance is the sum of, seeds, of each side, and images.
    None where there is too little to know them.
    """

    value: float
    parts: tuple[tuple[float, float], ...] | None

    @property
    def variance(self) -> float | None:
        """Of the value."""
        return None if self.parts is None else sum(variance for variance, _ in self.parts)

    @property
    def p(self) -> float | None:
        """Of the value being 0, two-sided: 1 - the level of the interval that ends at 0. None where nothing varies."""
        if not self.variance:
            return 1.0 if self.variance == 0 and abs(self.value) < 1e-12 else None
        beyond = abs(self.value)
        if self._half_width(LEAST_P) <= beyond:
            return LEAST_P
        return math.exp(brentq(lambda log: self._half_width(math.exp(log)) - beyond, math.log(LEAST_P), 0))

    @property
    def interval(self) -> tuple[float, float] | None:
        """At 95 %: 0 is outside where p is below 0.05. None where p is."""
        if self.variance is None or (self.variance == 0 and self.p is None):
            return None
        half = self._half_width(1 - LEVEL)
        return self.value - half, self.value + half

    def _half_width(self, alpha: float) -> float:
        """The root of the sum of t^2 variance, each t with its own degrees of freedom (Banerjee 1960, Sankhya 22:357).

        The level is the nominal one or more, whatever the parts are: P(chi^2 of 1 <= x) is concave in x, so that the
        level is concave in the shares of the parts, and with one part alone it is exact. A single t with the degrees of
        freedom of Hillis (2007) takes seeds that happen to lie close for sure: of two or three seeds, 7 to 13 % for 5 %.
        """
        widths = (_quantile(alpha, df) * math.sqrt(variance) for variance, df in self.parts or () if variance)
        return math.hypot(*widths)


@lru_cache(maxsize=1_000)
def _quantile(alpha: float, df: float) -> float:
    found = float(norm.isf(alpha / 2) if math.isinf(df) else student.isf(alpha / 2, df))
    return found if math.isfinite(found) else math.inf  # far out scipy answers -inf or nan for some df


class MeanSquares(NamedTuple):
    """Of a two-way layout of seeds and images: between seeds, between images, and what is left of the cells."""

    seed: float
    image: float
    cell: float


def mean_squares(values: Floats) -> MeanSquares:
    """The analysis of variance of values [S, n], one a cell; S and n are at least 2."""
    seeds, images = values.shape
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    rest = values - rows[:, None] - columns + values.mean()
    found = (
        images * rows.var(ddof=1),
        seeds * columns.var(ddof=1),
        np.square(rest).sum() / ((seeds - 1) * (images - 1)),
    )
    rounding = NOTHING * float(np.abs(values).max()) ** 2
    return MeanSquares(*(0.0 if one <= rounding else float(one) for one in found))


def over_seeds_and_images(values: Floats) -> Estimate:
    """The mean of values [S, n] with the variance of other seeds and other images, both random and crossed.

    Seeds are as readers and images as cases in the multi-reader multi-case analysis (Dorfman, Berbaum and Metz 1992; the
    variance as in Hillis 2007, Statistics in Medicine 26:596-619): an image is as hard for all runs, and a run as good
    on all images, so neither are images of several runs so many images, nor is a seed more than one draw.

    Args:
        values: a row a seed, two or more: right or wrong, or the gain of one recipe over another with the same seed.
    """
    seeds, images = values.shape
    if images < 2:
        return Estimate(float(values.mean()), None)
    squares = mean_squares(values)
    of_seeds, of_images = squares.seed, max(squares.image - squares.cell, 0.0)
    if of_seeds == of_images == 0:  # runs as good as each other on different images: cells vary all the same
        of_images = squares.cell
    parts = ((of_seeds / (images * seeds), seeds - 1.0), (of_images / (images * seeds), images - 1.0))
    return Estimate(float(values.mean()), parts)


def difference_apart(a: Floats, b: Floats) -> Estimate:
    """The mean of b - a for independent seeds over the same images, as `over_seeds_and_images` otherwise.

    The seeds of each side are a part of their own. (One part of both, with the degrees of freedom of Welch's test, takes
    two seeds that happen to lie close for sure: against ten others, 8 to 10 % for 5 %.)

    Args:
        a: [S_a, n], a row a run: 1 right, 0 wrong. A single run has no variance of seeds in it.
        b: [S_b, n].
    """
    images = a.shape[1]
    mean = float(b.mean() - a.mean())
    if images < 2:
        return Estimate(mean, None)
    several = [(len(one), mean_squares(one)) for one in (a, b) if len(one) > 1]
    gain = b.mean(axis=0) - a.mean(axis=0)
    cells = sum(squares.cell / (images * seeds) for seeds, squares in several)
    of_images = alone = float(gain.var(ddof=1)) / images
    of_images -= cells
    of_seeds = [(squares.seed / (images * seeds), seeds - 1.0) for seeds, squares in several]
    if not any(part for part, _ in of_seeds) and of_images <= NOTHING:
        of_images = alone
    return Estimate(mean, (*of_seeds, (of_images if of_images > NOTHING else 0.0, images - 1.0)))


def over_resamples(by_run: Floats, values: Floats) -> Estimate:
    """As `over_seeds_and_images` for a number that is no mean over images: the part of images by the bootstrap.

    What images add is common to all runs: the covariance of two runs over the same resamples, of all pairs the mean.
    (Of a mean over images this is (MS_image - MS_cell) / (n S), but for the draws.)

    Args:
        by_run: [R, S], the value of each run over the images of each of `resamples`.
        values: [S], over all images; S is at least 2.
    """
    seeds = len(values)
    of_seeds = float(values.var(ddof=1)) / seeds
    covariance = np.cov(by_run.T)
    of_images = max(float(covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1)), 0.0)
    if of_seeds == of_images == 0:
        of_images = float(np.trace(covariance)) / seeds**2
    return Estimate(float(values.mean()), ((of_seeds, seeds - 1.0), (of_images, math.inf)))


def difference_over_seeds(a: Floats, b: Floats, *, paired: bool) -> Estimate:
    """The mean of b - a over seeds and images together, over the same images.

    Args:
        a, b: float64 [S, n], a row a run; at least one has several.
        paired: whether the rows are of the same seeds, two or more, in the same order.
    """
    return over_seeds_and_images(b - a) if paired else difference_apart(a, b)


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


def p_over_images(a: Floats, b: Floats) -> float | None:
    """The p-value of the paired t-test over images, for means of several runs: as if these runs were all there could be.

    1 without any difference; None of one image, or where all differ by the same.
    """
    return _p_of_pairs(a, b)


def p_over_paired_seeds(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The p-value of the paired t-test between the accuracies of two sets of runs with the same seeds, in their order,
    as if there were no other images. Without any variation of the differences it is 1 when they are 0, else None.
    """
    return _p_of_pairs(np.asarray(a), np.asarray(b))


def _p_of_pairs(a: Floats, b: Floats) -> float | None:
    gain = b - a
    if np.abs(gain).max() < 1e-12:
        return 1.0
    return None if np.ptp(gain) < 1e-12 else float(ttest_rel(a, b).pvalue)


def p_over_seeds(a: Sequence[float], b: Sequence[float]) -> float | None:
    """The p-value of Welch's t-test (1947) between the accuracies of two sets of runs, two or more each, as if there
    were no other images. Without any variation within the sets it is 1 when their accuracies are equal, else None.
    """
    if np.ptp(a) < 1e-12 and np.ptp(b) < 1e-12:
        return 1.0 if abs(a[0] - b[0]) < 1e-12 else None
    return float(ttest_ind(a, b, equal_var=False).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values adjusted for the number of tests (Holm 1979), in their order; None counts as 1, and stays."""
    known = np.array([1.0 if p is None else p for p in p_values])
    order = np.argsort(known, kind="stable")
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(known[order] * np.arange(len(order), 0, -1))
    return [
        None if p is None else float(one) for p, one in zip(p_values, np.minimum(adjusted, 1), strict=True)
    ]
