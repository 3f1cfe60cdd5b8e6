"""Intervals and tests against scipy, statsmodels, published and hand-worked values, and by simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, norm, t, ttest_1samp
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW, ttest_ind

from pipeline.evaluation import statistics
from pipeline.evaluation.statistics import Estimate


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


def test_holm_takes_what_cannot_be_tested_as_1_and_leaves_it_unknown() -> None:
    assert statistics.holm([0.01, None, 0.04]) == [pytest.approx(0.03), None, pytest.approx(0.08)]
    assert statistics.holm([None]) == [None]


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
    assert statistics.p_over_images(np.zeros(3), np.ones(3)) is None
    assert statistics.p_over_images(np.zeros(1), np.ones(1)) is None


def test_p_over_seeds_is_welchs_test_of_statsmodels() -> None:
    a, b = [0.81, 0.83, 0.80], [0.84, 0.86, 0.85, 0.83]
    assert statistics.p_over_seeds(a, b) == pytest.approx(ttest_ind(a, b, usevar="unequal")[1])
    assert statistics.p_over_seeds([0.8, 0.8], [0.8, 0.8]) == 1
    assert statistics.p_over_seeds([0.8, 0.8], [0.9, 0.9]) is None


def test_the_resamples_of_many_images_are_the_same_in_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(statistics.resamples(40, 250))
    assert [len(chunk) for chunk in whole] == [100, 100, 50]
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 40 * 30)
    chunks = list(statistics.resamples(40, 250))
    assert max(map(len, chunks)) == 30
    assert (np.vstack(chunks) == np.vstack(whole)).all()


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
    low, high = interval(statistics.difference_over_seeds(a, b, paired=True))
    assert 0 < low < (b - a).mean() < high < 0.12
    apart_low, apart_high = interval(statistics.difference_over_seeds(a, b, paired=False))
    assert apart_low < -0.1 < 0.2 < apart_high
    assert statistics.p_over_paired_seeds([0.5, 0.6], [0.5, 0.6]) == 1
    assert statistics.p_over_paired_seeds([0.5, 0.6], [0.6, 0.7]) is None


def interval(estimate: Estimate) -> tuple[float, float]:
    assert estimate.interval is not None
    return estimate.interval


def crossed(
    seed: int, seeds: int, images: int, of_seeds: float, of_images: float, of_cells: float = 1.0
) -> np.ndarray:
    """Values [S, n] with mean 0, the sum of what a seed, an image and the cell add, with these standard deviations."""
    random = np.random.default_rng(seed)
    return np.asarray(
        random.normal(0, of_seeds, (seeds, 1))
        + random.normal(0, of_images, images)
        + random.normal(0, of_cells, (seeds, images))
    )


@pytest.mark.parametrize(("seeds", "images"), [(2, 30), (4, 7)])
def test_the_mean_squares_are_those_of_statsmodels(seeds: int, images: int) -> None:
    values = crossed(seeds, seeds, images, 0.3, 1.0)
    long = pd.DataFrame(values).stack().rename_axis(["seed", "image"]).rename("value").reset_index()
    table = anova_lm(ols("value ~ C(seed) + C(image)", long).fit())
    squares = statistics.mean_squares(values)
    assert list(squares) == pytest.approx(table["mean_sq"].tolist())


def by_the_book(values: np.ndarray) -> tuple[float, float]:
    """The variance of the mean that seeds add, and images, one sum at a time."""
    seeds, images = values.shape
    rows, columns, mean = values.mean(axis=1), values.mean(axis=0), values.mean()
    of_seeds = sum(images * (row - mean) ** 2 for row in rows) / (seeds - 1)
    of_images = sum(seeds * (column - mean) ** 2 for column in columns) / (images - 1)
    of_cells = sum(
        (values[s, i] - rows[s] - columns[i] + mean) ** 2 for s in range(seeds) for i in range(images)
    ) / ((seeds - 1) * (images - 1))
    return of_seeds / (images * seeds), max(of_images - of_cells, 0) / (images * seeds)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_p_and_interval_over_seeds_and_images_are_those_of_the_formula(seeds: int) -> None:
    values = crossed(seeds, seeds, 60, 0.2, 1.5) + 0.4
    of_seeds, of_images = by_the_book(values)
    found = statistics.over_seeds_and_images(values)
    assert found.variance == pytest.approx(of_seeds + of_images)
    half = np.sqrt(t.ppf(0.975, seeds - 1) ** 2 * of_seeds + t.ppf(0.975, 59) ** 2 * of_images)
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half))
    assert found.p is not None
    ends = np.sqrt(t.isf(found.p / 2, seeds - 1) ** 2 * of_seeds + t.isf(found.p / 2, 59) ** 2 * of_images)
    assert ends == pytest.approx(abs(values.mean()))
    back = statistics.over_seeds_and_images(-values)
    assert (back.value, back.p) == pytest.approx((-found.value, found.p))


def test_independent_seeds_add_their_variances_and_images_count_once() -> None:
    hard = np.random.default_rng(0).normal(0, 1, 80)
    a, b = crossed(1, 3, 80, 0.3, 0.5) + hard, crossed(2, 4, 80, 0.1, 0.5) + hard
    cells = [statistics.mean_squares(one).cell / (80 * len(one)) for one in (a, b)]
    of_images = (b.mean(axis=0) - a.mean(axis=0)).var(ddof=1) / 80
    parts = [(a.mean(axis=1).var(ddof=1) / 3, 2), (b.mean(axis=1).var(ddof=1) / 4, 3)]
    found = statistics.difference_apart(a, b)
    assert found.variance == pytest.approx(sum(part for part, _ in parts) + of_images - sum(cells))
    parts.append((of_images - sum(cells), 79))
    half = np.sqrt(sum(t.ppf(0.975, df) ** 2 * part for part, df in parts))
    low, high = interval(found)
    assert (high - low) / 2 == pytest.approx(half)
    alone = statistics.difference_apart(a[:1], b)
    of_images = (b.mean(axis=0) - a[0]).var(ddof=1) / 80
    assert alone.variance == pytest.approx(parts[1][0] + of_images - cells[1])
    ones = statistics.difference_apart(a[:1], b[:1])
    assert ones.variance == pytest.approx((b[0] - a[0]).var(ddof=1) / 80)


def test_where_images_add_nothing_it_is_the_t_test_over_seeds() -> None:
    values = np.array([0.1, 0.4, 0.3])[:, None] + np.tile([-1.0, 1.0], 10)
    found = statistics.over_seeds_and_images(values - np.tile([-1.0, 1.0], 10))
    assert found.p == pytest.approx(ttest_1samp([0.1, 0.4, 0.3], 0).pvalue)


def test_where_seeds_add_nothing_it_is_the_t_test_over_images() -> None:
    values = np.tile(np.random.default_rng(0).normal(0.2, 1, 50), (3, 1))
    found = statistics.over_seeds_and_images(values)
    assert found.p == pytest.approx(ttest_1samp(values[0], 0).pvalue)


def test_what_does_not_vary_cannot_be_tested_and_has_no_interval() -> None:
    """Rounding in the mean squares is no variation, and a difference of 0 is none."""
    for gain in (1.0, 1 / 3):
        nothing = statistics.over_seeds_and_images(np.full((3, 7), gain))
        assert (nothing.p, nothing.interval) == (None, None)
        apart = statistics.difference_apart(np.zeros((2, 7)), np.full((3, 7), gain))
        assert (apart.p, apart.interval) == (None, None)
    equal = statistics.over_seeds_and_images(np.zeros((3, 7)))
    assert (equal.p, equal.interval) == (1.0, (0.0, 0.0))
    for one_image in (
        statistics.over_seeds_and_images(np.array([[0.0], [1.0]])),
        statistics.difference_apart(np.zeros((1, 1)), np.array([[0.0], [1.0]])),
    ):
        assert (one_image.p, one_image.interval) == (None, None)


def test_runs_that_are_as_good_on_different_images_are_not_taken_for_sure() -> None:
    """Neither the seeds' part nor the images' is above 0, and the cells vary."""
    values = np.array([[1.0, 1, 0, 0, 0, 0], [0.0, 0, 1, 1, 0, 0]])
    by_run = np.vstack([weights @ values.T / 6 for weights in statistics.resamples(6)])
    for found in (
        statistics.over_seeds_and_images(values),
        statistics.difference_apart(np.zeros((2, 6)), values),
        statistics.over_resamples(by_run, values.mean(axis=1)),
    ):
        low, high = interval(found)
        assert low < 1 / 3 < high
        assert 0 < (found.p or 0) < 1


def right_of_one_recipe(random: np.random.Generator, ease: np.ndarray, seeds: int) -> np.ndarray:
    return (random.random((seeds, len(ease))) < 1 / (1 + np.exp(-ease))).astype(np.float64)


def test_two_seeds_and_ten_of_one_recipe_differ_in_at_most_one_of_twenty_draws() -> None:
    """Two seeds of the twelve that happen to lie close are not taken for sure."""
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(600):
        ease = 2 + 2 * random.normal(size=650)
        a, b = (right_of_one_recipe(random, ease, seeds) for seeds in (2, 10))
        low, high = interval(statistics.difference_apart(a, b))
        missed += not low <= 0 <= high
    assert missed <= 0.05 * 600


def test_few_images_are_few() -> None:
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(1_000):
        values = random.normal(size=(1, 5)) + 0.3 * random.normal(size=(5, 5))
        low, high = interval(statistics.over_seeds_and_images(values))
        missed += not low <= 0 <= high
    assert missed <= 0.065 * 1_000


def test_a_p_value_exists_for_all_degrees_of_freedom() -> None:
    """Far out scipy's quantile of t is -inf or NaN for some."""
    for df in (2.086357182075204, *np.linspace(1, 13, 300)):
        p = Estimate(3.641744762173219, ((1.0, df), (0.0, math.inf))).p
        assert p is not None and 0 < p < 1


def test_a_p_value_is_never_0() -> None:
    values = 1e3 + crossed(0, 60, 50, 0, 0, 1e-6)
    assert statistics.over_seeds_and_images(values).p == statistics.LEAST_P


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("of_seeds", "of_images"), [(0.0, 1.0), (1.0, 1.0), (3.0, 1.0), (1.0, 0.0)])
def test_at_most_one_interval_of_twenty_misses(seeds: int, of_seeds: float, of_images: float) -> None:
    """Whatever outweighs what, paired and apart, where the mean is 0: 5 % of 500 draws vary by 1 %.

    of_seeds, of_images: their shares of the error of the mean, as standard deviations.
    """
    images, draws = 30, 500
    random = np.random.default_rng(seeds)
    seed_effect = random.normal(0, of_seeds * np.sqrt(seeds / images / 2), (draws, 2, seeds, 1))
    image_effect = random.normal(0, of_images / np.sqrt(2), (draws, 2, 1, images))
    cells = random.normal(0, 1 / np.sqrt(2), (draws, 2, seeds, images))
    missed = np.zeros(2)
    for a, b in seed_effect + image_effect + cells:
        for place, paired in enumerate((True, False)):
            low, high = interval(statistics.difference_over_seeds(a, b, paired=paired))
            missed[place] += not low <= 0 <= high
    assert (missed / draws <= 0.05 + 3 * 0.01).all(), missed


def test_the_bootstraps_variance_of_a_mean_is_about_that_of_the_formula() -> None:
    values = crossed(3, 5, 300, 0.1, 1.0, 0.3)
    by_run = np.vstack([weights @ values.T / 300 for weights in statistics.resamples(300)])
    found = statistics.over_resamples(by_run, values.mean(axis=1))
    exact = statistics.over_seeds_and_images(values)
    assert found.variance == pytest.approx(exact.variance, rel=0.15)
    assert interval(found) == pytest.approx(interval(exact), abs=0.03)
