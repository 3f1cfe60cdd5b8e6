import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import roc_auc_score, roc_curve

from pipeline.common import seeding
from pipeline.unknown import measures
from pipeline.unknown.measures import Scored


def scored(n: int, classes: int, mean: float, first: int = 0, seed: int = 0) -> Scored:
    """Scores with a shift of its own for each class, with ties."""
    random = np.random.default_rng(seed)
    group = first + np.arange(n) % classes
    shift = random.normal(size=first + classes)
    return Scored(np.round(random.normal(size=n) + shift[group] + mean, 1), group)


def test_auroc_is_scikit_learns_with_ties() -> None:
    known, unknown = scored(60, 4, 1.0), scored(50, 3, 0.0, first=4, seed=1)
    truth = np.repeat([1, 0], [60, 50])
    expected = roc_auc_score(truth, np.concatenate([known.score, unknown.score]))
    assert measures.auroc([(known, unknown)]).value == pytest.approx(expected)


def test_auroc_of_several_comparisons_counts_pairs_within_each() -> None:
    first = Scored(np.array([1.0, 2.0]), np.array([0, 1])), Scored(np.array([0.0]), np.array([2]))
    second = Scored(np.array([10.0]), np.array([2])), Scored(np.array([20.0, 10.0]), np.array([0, 1]))
    assert measures.auroc([first, second]).value == pytest.approx((2 + 0.5) / 4)


def test_the_interval_of_auroc_draws_whole_classes() -> None:
    """Two hundred equal images of each class say no more than one."""
    one = Scored(np.array([3.0, 1.0]), np.array([0, 1])), Scored(np.array([2.0, 0.0]), np.array([2, 3]))
    many = tuple(Scored(np.repeat(s.score, 200), np.repeat(s.group, 200)) for s in one)
    assert measures.auroc([(many[0], many[1])]) == measures.auroc([one])
    value, low, high = measures.auroc([one])
    assert (value, low, high) == (0.75, 0, 1)


def test_fpr95_is_that_of_the_roc_curve() -> None:
    known, unknown = scored(80, 4, 1.0), scored(70, 3, 0.0, first=4, seed=1)
    truth = np.repeat([1, 0], [80, 70])
    false, true, _ = roc_curve(truth, np.concatenate([known.score, unknown.score]), drop_intermediate=False)
    found = measures.false_positive_rate(known, unknown)
    assert found.value == pytest.approx(false[np.argmax(true >= 0.95)])
    assert 0 <= found.low < found.value < found.high <= 1


def test_share_and_its_interval_over_classes() -> None:
    group = np.repeat([3, 7, 9], 10)
    chosen = np.repeat([True, False, False], 10)
    value, low, high = measures.share(chosen, group)
    assert value == pytest.approx(1 / 3)
    assert (low, high) == (0, 1)


@pytest.mark.parametrize(("n", "place"), [(19, 1), (33, 1), (39, 2), (99, 5), (10, 1)])
def test_the_threshold_is_the_order_statistic_of_split_conformal_prediction(n: int, place: int) -> None:
    known = np.random.default_rng(n).permutation(n).astype(float)
    assert measures.threshold(known, 0.95) == place - 1
    promise = measures.promised(n, 0.95)
    assert promise.value == pytest.approx((n + 1 - place) / (n + 1))
    assert promise.low == pytest.approx(beta.ppf(0.025, n + 1 - place, place))
    assert promise.high == pytest.approx(beta.ppf(0.975, n + 1 - place, place))


def test_the_promise_holds_on_average_over_validation_sets() -> None:
    kept = []
    for draw in range(2000):
        random = seeding.generator("promise", draw)
        threshold = measures.threshold(random.normal(size=45), 0.95)
        kept.append((random.normal(size=200) >= threshold).mean())
    low, high = np.percentile(kept, [2.5, 97.5])
    promise = measures.promised(45, 0.95)
    assert np.mean(kept) == pytest.approx(promise.value, abs=0.003)
    assert low == pytest.approx(promise.low, abs=0.02)
    assert high == pytest.approx(promise.high, abs=0.02)


@pytest.mark.parametrize(("kept", "images"), [(0.95, 19), (0.9, 9), (0.99, 99)])
def test_so_many_images_suffice_and_one_fewer_does_not(kept: float, images: int) -> None:
    assert measures.needed(kept) == images
    assert measures.promised(images, kept).value >= kept - 1e-9
    assert measures.promised(images - 1, kept).value < kept
