import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from pipeline.answering import unknown_scores as scores
from pipeline.inference.linear_head import Images

LOGITS = np.array([[0.0, 0.0], [math.log(3), 0.0]], np.float32)
"""probabilities 1/2, 1/2 and 3/4, 1/4"""


def images(n: int = 40, dimensions: int = 12, classes: int = 4) -> Images:
    """Classes with means of their own; labels in turn."""
    random = np.random.default_rng(0)
    labels = np.arange(n) % classes
    centres = 3 * random.normal(size=(classes, dimensions))
    return Images((centres[labels] + random.normal(size=(n, dimensions))).astype(np.float32), labels)


def test_the_scores_of_the_logits_are_those_worked_by_hand() -> None:
    assert scores.msp(LOGITS) == pytest.approx([1 / 2, 3 / 4])
    assert scores.max_logit(LOGITS) == pytest.approx([0, math.log(3)])
    assert scores.energy(LOGITS) == pytest.approx([math.log(2), math.log(4)])
    assert scores.generalised_entropy(LOGITS) == pytest.approx([-2 * 0.25**0.1, -2 * (3 / 16) ** 0.1])


def test_gen_sums_over_the_100_likeliest_classes() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 130)).astype(np.float32)
    for row, found in zip(logits, scores.generalised_entropy(logits), strict=True):
        likeliest = sorted(softmax(row.astype(float)), reverse=True)[:100]
        assert found == pytest.approx(-sum((p * (1 - p)) ** 0.1 for p in likeliest))


def test_energy_and_gen_stay_finite_for_large_logits() -> None:
    logits = np.array([[1000.0, -1000.0]], np.float32)
    assert scores.energy(logits) == pytest.approx([1000])
    assert scores.generalised_entropy(logits) == pytest.approx([0])


def test_rmds_is_the_difference_of_mahalanobis_distances_of_unit_features() -> None:
    train, queries = images(), images(7).features[:, ::-1]
    unit = train.features / np.linalg.norm(train.features, axis=1, keepdims=True)
    means = np.stack([unit[train.labels == label].mean(axis=0) for label in range(4)])
    within, total = unit - means[train.labels], unit - unit.mean(axis=0)
    shrinkage = LedoitWolf(assume_centered=True).fit(within).shrinkage_
    target = shrinkage * np.square(total).mean() * np.eye(12)

    def distances(residuals: np.ndarray, centres: np.ndarray) -> np.ndarray:
        covariance = (1 - shrinkage) * np.cov(residuals.T, bias=True) + target
        inverse = np.linalg.inv(covariance)
        unit_queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        return cdist(unit_queries, centres, "mahalanobis", VI=inverse) ** 2

    expected = distances(total, unit.mean(axis=0, keepdims=True))[:, 0] - distances(within, means).min(axis=1)
    found = scores.fit("rmds", train).of(np.empty((7, 0), np.float32), queries)
    assert found == pytest.approx(expected, abs=1e-3)
    assert np.ptp(expected) > 1


def test_rmds_knows_classes_where_images_are_fewer_than_features() -> None:
    random = np.random.default_rng(1)
    centres = random.normal(size=(6, 400))

    def of(labels: np.ndarray) -> Images:
        noise = random.normal(size=(len(labels), 400))
        return Images((centres[labels] + noise).astype(np.float32), labels)

    score = scores.fit("rmds", of(np.arange(60) % 4))
    known, unknown = (
        score.of(np.empty((0, 4), np.float32), of(labels).features)
        for labels in (np.arange(40) % 4, 4 + np.arange(40) % 2)
    )
    assert (known[:, None] > unknown).mean() > 0.95


def test_knn_is_minus_the_distance_to_the_fifth_nearest_unit_feature() -> None:
    train, queries = images(), images(7).features[:, ::-1]
    index = NearestNeighbors(n_neighbors=5).fit(scores.unit(train.features))
    distance, _ = index.kneighbors(scores.unit(queries))
    found = scores.fit("knn", train).of(np.empty((7, 0), np.float32), queries)
    assert found == pytest.approx(-distance[:, 4], abs=1e-5)


def test_knn_of_fewer_training_images_takes_the_farthest() -> None:
    train = images(3, classes=3)
    found = scores.fit("knn", train).of(np.empty((1, 0), np.float32), train.features[:1])
    cosines = scores.unit(train.features) @ scores.unit(train.features[:1]).T
    assert found == pytest.approx([-math.sqrt(2 - 2 * cosines.min())], abs=1e-5)


def test_equal_images_are_no_error() -> None:
    train = Images(np.ones((8, 5), np.float32), np.arange(8) % 2)
    assert np.isfinite(scores.fit("rmds", train).of(np.empty((8, 0), np.float32), train.features)).all()


@pytest.mark.parametrize("name", scores.NAMES)
def test_each_score_is_higher_for_images_of_the_known_classes(name: scores.Name) -> None:
    train = images(80, 30)
    unknown = np.random.default_rng(5).normal(size=(20, 30)).astype(np.float32)
    head = 2 * np.stack([train.features[train.labels == label].mean(axis=0) for label in range(4)])
    score = scores.fit(name, Images(train.features[40:], train.labels[40:]))
    known_scores = score.of(train.features[:40] @ head.T, train.features[:40])
    assert known_scores.mean() > score.of(unknown @ head.T, unknown).mean()
