"""How far a number may be off: 95 % intervals of a proportion, and of anything computed over images."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from pipeline.common import seeding

LEVEL = 0.95
RESAMPLES = 2_000
CHUNK = 100  # resamples at a time: 5,794 images take 5 MB

Weights = npt.NDArray[np.float64]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927), as scipy computes it; (0, 1) without trials."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def resamples(n: int, count: int = RESAMPLES) -> Iterator[Weights]:
    """The bootstrap (Efron 1979) as weights: how often each of n images was drawn, float64 [chunk, n].

    A mean over a resample is `weights @ values / n`. The draws depend on n alone, so the same images
    give the same intervals, and two models are compared over the same draws.
    """
    random = seeding.generator("bootstrap", n)
    for start in range(0, count, CHUNK):
        rows = min(CHUNK, count - start)
        drawn = random.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def percentiles(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of the resampled values [R]; NaN (a resample without the value) is left out."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def of_means(values: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Bootstrap intervals of the means over images of the columns of `values`, [n, K]."""
    means = np.vstack([weights @ values / len(values) for weights in resamples(len(values))])
    return [percentiles(column) for column in means.T]
