"""Two models on the same images: is the difference more than noise?"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, ttest_ind, ttest_rel

from pipeline import intervals

Floats = npt.NDArray[np.float64]


def mcnemar(only_a: int, only_b: int) -> float:
    """The p-value of McNemar's test (1947), exact: the images that one model alone has right are a fair coin's.

    Two-sided and binomial for any number of such images, so no approximation for few of them is needed;
    1 without any.
    """
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b).pvalue)


def difference(a: Floats, b: Floats) -> tuple[float, float, float]:
    """The mean of b - a over images, and its 95 % interval by the paired bootstrap.

    Args:
        a, b: float64 [n], what each model made of the same images: 1 right, 0 wrong, or the mean of several runs.
    """
    gained = b - a
    ((low, high),) = intervals.of_means(gained[:, None])
    return float(gained.mean()), low, high


def p_over_images(a: Floats, b: Floats) -> float:
    """The p-value of the paired t-test over images, for means of several runs; 1 where nothing differs."""
    return 1.0 if np.array_equal(a, b) else float(ttest_rel(a, b).pvalue)


def p_over_seeds(a: Sequence[float], b: Sequence[float]) -> float:
    """The p-value of Welch's t-test (1947) between the accuracies of two sets of runs, two or more each.

    1 where all are equal, and 0 where those within each set are and the sets differ.
    """
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return float(a[0] == b[0])
    return float(ttest_ind(a, b, equal_var=False).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being several (Holm 1979), in their order."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    return [float(p) for p in np.minimum(adjusted, 1)]
