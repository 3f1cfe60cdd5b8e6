"""Intervals and tests against scipy, statsmodels, published and hand-worked values."""

import numpy as np
import pytest
from scipy.stats import bootstrap, norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW, ttest_ind

from pipeline.evaluation import statistics


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
    assert statistics.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_a_resample_draws_as_many_images_as_there_are_and_each_equally_often() -> None:
    weights = np.vstack(list(statistics.resamples(40, 1_050)))
    assert weights.shape == (1_050, 40)
    assert (weights.sum(axis=1) == 40).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(40), abs=0.15)
    assert weights.var() == pytest.approx(1 - 1 / 40, abs=0.05)
    again = np.vstack(list(statistics.resamples(40, 1_050)))
    assert (weights == again).all()


def test_intervals_of_means_are_those_of_scipy() -> None:
    random = np.random.default_rng(3)
    values = np.column_stack([random.random(200) < 0.8, random.exponential(2, 200)]).astype(float)
    for column, interval in zip(values.T, statistics.mean_intervals(values), strict=True):
        reference = bootstrap((column,), np.mean, method="percentile", n_resamples=20_000, rng=1)
        width = reference.confidence_interval.high - reference.confidence_interval.low
        assert interval == pytest.approx(tuple(reference.confidence_interval), abs=0.06 * width)
        half = norm.ppf(0.975) * column.std() / np.sqrt(200)
        assert interval == pytest.approx((column.mean() - half, column.mean() + half), abs=0.2 * half)


def test_resamples_without_the_value_are_left_out() -> None:
    values = np.array([np.nan, *np.linspace(0, 1, 41)])
    assert statistics.percentiles(values) == pytest.approx((0.025, 0.975))


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 9), (10, 28), (7, 7), (150, 190), (0, 12)])
def test_mcnemars_p_is_that_of_statsmodels(only_a: int, only_b: int) -> None:
    reference = mcnemar([[500, only_a], [only_b, 60]], exact=True).pvalue
    assert statistics.mcnemar(only_a, only_b) == pytest.approx(reference)


def test_mcnemars_p_of_hand_worked_counts() -> None:
    assert statistics.mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert statistics.mcnemar(0, 0) == 1


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03], [0.5], [0.2, 0.9, 0.9, 0.001], [0.02, 0.02]])
def test_holms_adjustment_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert statistics.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_the_difference_over_images_and_its_interval() -> None:
    random = np.random.default_rng(0)
    a = (random.random(800) < 0.7).astype(float)
    b = np.where(random.random(800) < 0.1, 1, a)
    mean, low, high = statistics.difference(a, b)
    assert mean == pytest.approx(b.mean() - a.mean())
    half = 1.96 * (b - a).std() / np.sqrt(800)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.25 * half)
    back = statistics.difference(b, a)
    assert back == pytest.approx((-mean, -high, -low), abs=1e-12)


def test_p_over_images_is_the_paired_t_test_of_statsmodels() -> None:
    random = np.random.default_rng(2)
    a, b = random.random((2, 60))
    assert statistics.p_over_images(a, b) == pytest.approx(DescrStatsW(b - a).ttest_mean(0)[1])
    assert statistics.p_over_images(a, a) == 1


def test_p_over_seeds_is_welchs_test_of_statsmodels() -> None:
    a, b = [0.81, 0.83, 0.80], [0.84, 0.86, 0.85, 0.83]
    assert statistics.p_over_seeds(a, b) == pytest.approx(ttest_ind(a, b, usevar="unequal")[1])
    assert statistics.p_over_seeds([0.8, 0.8], [0.8, 0.8]) == 1
    assert statistics.p_over_seeds([0.8, 0.8], [0.9, 0.9]) == 0


def test_the_resamples_of_many_images_are_the_same_in_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(statistics.resamples(40, 250))
    assert [len(chunk) for chunk in whole] == [100, 100, 50]
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 40 * 30)
    chunks = list(statistics.resamples(40, 250))
    assert max(map(len, chunks)) == 30
    assert (np.vstack(chunks) == np.vstack(whole)).all()


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_a_mean_over_drawn_seeds_varies_as_the_mean_of_so_many_does(seeds: int) -> None:
    weights = statistics.seed_resamples(seeds)
    assert weights.shape == (statistics.RESAMPLES, seeds)
    assert weights.sum(axis=1) == pytest.approx(np.ones(statistics.RESAMPLES))
    values = np.arange(seeds, dtype=float)
    expected = values.var(ddof=1) / seeds if seeds > 1 else 0.0
    assert (weights @ values).var() == pytest.approx(expected, rel=0.1)
    assert not (seeds > 1 and (weights == statistics.seed_resamples(seeds, "b")).all())


def test_runs_with_the_same_seeds_are_compared_seed_by_seed() -> None:
    """Two recipes whose seeds differ much, and alike: paired, the difference is sure, unpaired it is not."""
    random = np.random.default_rng(0)
    level = np.array([0.5, 0.7, 0.9])
    draw = random.random((3, 500))
    a, b = (np.asarray(draw < (level + gain)[:, None], float) for gain in (0.0, 0.05))
    tops = [each.mean(axis=1).tolist() for each in (a, b)]
    assert statistics.p_over_paired_seeds(*tops) == pytest.approx(
        DescrStatsW(np.subtract(*tops)).ttest_mean()[1]
    )
    low, high = statistics.difference_over_seeds(a, b, paired=True)
    assert 0.02 < low < (b - a).mean() < high < 0.08
    apart_low, apart_high = statistics.difference_over_seeds(a, b, paired=False)
    assert apart_low < -0.1 < 0.2 < apart_high
    assert statistics.p_over_paired_seeds([0.5, 0.6], [0.5, 0.6]) == 1
    assert statistics.p_over_paired_seeds([0.5, 0.6], [0.6, 0.7]) == 0
