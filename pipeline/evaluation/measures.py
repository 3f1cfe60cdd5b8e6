"""Numbers of a run's predictions as functions of how often each image counts: one formula for value and resamples.

`plumage repeat` takes them over several runs; `metrics.json` has those of one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array

from pipeline.evaluation import calibration, statistics
from pipeline.evaluation.statistics import Estimate

Floats = npt.NDArray[np.float64]
Weighted = Callable[[Floats], Floats]
"""of weights float64 [R, n], how often each image counts, to the value under each of them: [R]"""


class Measure(NamedTuple):
    """A number of a predictions table, 0 or more."""

    name: str
    of: Callable[[pd.DataFrame], Weighted]
    most: float | None = None
    """what it can be at most; None: 1 for the mean of a value that is 0 or 1 for each image, no limit for any other"""


@dataclass(frozen=True)
class MeanOverImages:
    """The mean of a value of each image, [n]; an image whose value is NaN does not count."""

    values: Floats

    def __call__(self, weights: Floats) -> Floats:
        """Under each of the weights [R, n]: [R]."""
        counted = ~np.isnan(self.values)
        of_counted = weights[:, counted]
        total = of_counted.sum(axis=1)
        sums = of_counted @ self.values[counted]
        mean = np.divide(sums, total, out=np.full(len(total), np.nan), where=total > 0)
        return np.asarray(mean, np.float64)


def _top1(table: pd.DataFrame) -> Weighted:
    return MeanOverImages(_right(table))


def _nll(table: pd.DataFrame) -> Weighted:
    return MeanOverImages(-np.log(table["probability"].clip(lower=1e-300).to_numpy(np.float64)))


def _per_class_mean(table: pd.DataFrame) -> Weighted:
    """The mean of the classes' accuracies; a class that a resample lacks is left out."""
    label, right = table["label"].to_numpy(), _right(table)
    n, classes = len(label), int(label.max()) + 1
    at = np.arange(n)
    images, hits = (csr_array((values, (at, label)), shape=(n, classes)) for values in (np.ones(n), right))

    def weighted(weights: Floats) -> Floats:
        drawn = weights @ images
        share = (weights @ hits) / np.maximum(drawn, 1)
        return np.asarray(share.sum(axis=1) / (drawn > 0).sum(axis=1), np.float64)

    return weighted


def _ece(table: pd.DataFrame) -> Weighted:
    """The sum over the bins of `calibration.reliability` of |sum of (right - confidence)| / n (Guo et al. 2017)."""
    confidence, n = table["confidence"].to_numpy(np.float64), len(table)
    gap = csr_array(
        (_right(table) - confidence, (np.arange(n), calibration.bin_of(confidence))),
        shape=(n, calibration.BINS),
    )
    return lambda weights: np.asarray(np.abs(weights @ gap).sum(axis=1) / weights.sum(axis=1), np.float64)


def _right(table: pd.DataFrame) -> Floats:
    return np.asarray(table["label"] == table["predicted"], np.float64)


OF_EVERY_RUN = (
    Measure("top1", _top1),
    Measure("per_class_mean", _per_class_mean, most=1.0),
    Measure("nll", _nll),
    Measure("ece", _ece, most=1.0),
)


def values(runs: Sequence[pd.DataFrame], measures: Sequence[Measure]) -> pd.DataFrame:
    """The value of each measure, a column, of each run, a row; the columns are in order.

    Args:
        runs: predictions tables of the same images, in the same order.
    """
    once = np.ones((1, len(runs[0])))
    return pd.DataFrame(
        {measure.name: [float(measure.of(table)(once)[0]) for table in runs] for measure in measures}
    )


def over_seeds(runs: Sequence[pd.DataFrame], measures: Sequence[Measure]) -> pd.DataFrame:
    """A row a measure: measure, runs, mean, sd, low, high.

    sd: standard deviation over the runs, missing for one. low, high: the 95 % interval of the mean over seeds and images
    together, within what the measure can be: a mean over images by `statistics.over_seeds_and_images`, another number by
    `statistics.over_resamples`; of one run, by the bootstrap over images. A single image tells nothing: they are the
    least and the most that the measure can be, and NaN where that has no limit.

    Args:
        runs: as `values` takes them.
    """
    value = values(runs, measures)
    weighted = [[measure.of(table) for table in runs] for measure in measures]
    cells = [_cells(of_measure) for of_measure in weighted]
    images = [len(runs[0]) if known is None else known.shape[1] for known in cells]
    is_drawn = [n > 1 and (len(runs) == 1 or known is None) for n, known in zip(images, cells, strict=True)]
    by_run = _resampled([of for of, drawn in zip(weighted, is_drawn, strict=True) if drawn], len(runs[0]))
    rows = []
    for measure, known, n, drawn in zip(measures, cells, images, is_drawn, strict=True):
        each = value[measure.name].to_numpy(np.float64)
        mean, sd = float(each.mean()), float(value[measure.name].std(ddof=1))
        most = _most(known) if measure.most is None and known is not None else measure.most
        if drawn and len(runs) == 1:
            low, high = statistics.percentiles(next(by_run)[:, 0])
        elif drawn:
            low, high = _within(statistics.over_resamples(next(by_run), each), most, n)
        elif known is None:
            low, high = _within(Estimate(mean, None), most, n)
        else:
            low, high = _within(statistics.over_seeds_and_images(known), most, n)
        rows.append(
            {"measure": measure.name, "runs": len(runs), "mean": mean, "sd": sd, "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def _cells(of_measure: Sequence[Weighted]) -> Floats | None:
    """The value of each run for each image that counts, [S, n]; None where it is no mean over the same images."""
    means = [of_run.values for of_run in of_measure if isinstance(of_run, MeanOverImages)]
    if len(means) < len(of_measure):
        return None
    cells = np.stack(means)
    counted = ~np.isnan(cells)
    return cells[:, counted[0]] if (counted == counted[0]).all() else None


def _resampled(weighted: Sequence[Sequence[Weighted]], images: int) -> Iterator[Floats]:
    """Each number of each run over the images of each resample: [R, S], number by number."""
    if not weighted:
        return
    parts = [
        [np.stack([of_run(weights) for of_run in of_measure], axis=1) for of_measure in weighted]
        for weights in statistics.resamples(images)
    ]
    for place in range(len(weighted)):
        yield np.vstack([part[place] for part in parts])


def _most(cells: Floats) -> float | None:
    return 1.0 if np.isin(cells, (0.0, 1.0)).all() else None


def _within(estimate: Estimate, most: float | None, images: int) -> tuple[float, float]:
    """The interval, no wider than what can be; Wilson's of a share that is 0 or 1 throughout, all for one image."""
    mean = estimate.value
    if estimate.variance is None:  # of one image
        return (math.nan, math.nan) if most is None else (0.0, most)
    if not estimate.variance:
        return (
            statistics.wilson(round(mean) * images, images) if most == 1 and mean in (0, 1) else (mean, mean)
        )
    low, high = estimate.interval or (mean, mean)
    return max(low, 0.0), high if most is None else min(high, most)
