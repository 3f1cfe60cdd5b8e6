"""Intervals against scipy's bootstrap and published values."""

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from pipeline.evaluation.statistics import mean_intervals, percentiles, resamples, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilsons_interval_is_the_published_one(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_a_resample_draws_as_many_images_as_there_are_and_each_equally_often() -> None:
    weights = np.vstack(list(resamples(40, 1_050)))
    assert weights.shape == (1_050, 40)
    assert (weights.sum(axis=1) == 40).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(40), abs=0.15)
    assert weights.var() == pytest.approx(1 - 1 / 40, abs=0.05)
    again = np.vstack(list(resamples(40, 1_050)))
    assert (weights == again).all()


def test_intervals_of_means_are_those_of_scipy() -> None:
    random = np.random.default_rng(3)
    values = np.column_stack([random.random(200) < 0.8, random.exponential(2, 200)]).astype(float)
    for column, found in zip(values.T, mean_intervals(values), strict=True):
        reference = bootstrap((column,), np.mean, method="percentile", n_resamples=20_000, rng=1)
        width = reference.confidence_interval.high - reference.confidence_interval.low
        assert found == pytest.approx(tuple(reference.confidence_interval), abs=0.06 * width)
        half = norm.ppf(0.975) * column.std() / np.sqrt(200)
        assert found == pytest.approx((column.mean() - half, column.mean() + half), abs=0.2 * half)


def test_resamples_without_the_value_are_left_out() -> None:
    values = np.array([np.nan, *np.linspace(0, 1, 41)])
    assert percentiles(values) == pytest.approx((0.025, 0.975))
