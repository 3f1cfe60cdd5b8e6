"""Numbers of a run's predictions as functions of how often each image counts: one formula for value and resamples.

`plumage repeat` takes them over several runs; `metrics.json` has those of one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array

from pipeline.evaluation import calibration, statistics

Floats = npt.NDArray[np.float64]
Weighted = Callable[[Floats], Floats]
"""of weights float64 [R, n], how often each image counts, to the value under each of them: [R]"""


class Measure(NamedTuple):
    """A number of a predictions table."""

    name: str
    of: Callable[[pd.DataFrame], Weighted]


def mean_over_images(values: Floats) -> Weighted:
    """The mean of a value of each image, [n]; an image whose value is NaN does not count."""
    counted = ~np.isnan(values)
    kept = values[counted]

    def weighted(weights: Floats) -> Floats:
        of_counted = weights[:, counted]
        total = of_counted.sum(axis=1)
        mean = np.divide(of_counted @ kept, total, out=np.full(len(total), np.nan), where=total > 0)
        return np.asarray(mean, np.float64)

    return weighted


def _top1(table: pd.DataFrame) -> Weighted:
    return mean_over_images(_right(table))


def _nll(table: pd.DataFrame) -> Weighted:
    return mean_over_images(-np.log(table["probability"].clip(lower=1e-300).to_numpy(np.float64)))


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
    Measure("per_class_mean", _per_class_mean),
    Measure("nll", _nll),
    Measure("ece", _ece),
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
    together (`statistics.over_seeds`); of one run, over images.

    Args:
        runs: as `values` takes them.
    """
    value = values(runs, measures)
    weighted = [[measure.of(table) for table in runs] for measure in measures]
    parts = [
        [np.stack([of_run(weights) for of_run in of_measure], axis=1) for of_measure in weighted]
        for weights in statistics.resamples(len(runs[0]))
    ]
    rows = []
    for place, measure in enumerate(measures):
        resampled = statistics.over_seeds(np.vstack([part[place] for part in parts]))
        low, high = statistics.percentiles(resampled)
        mean, sd = float(value[measure.name].mean()), float(value[measure.name].std(ddof=1))
        rows.append(
            {"measure": measure.name, "runs": len(runs), "mean": mean, "sd": sd, "low": low, "high": high}
        )
    return pd.DataFrame(rows)
