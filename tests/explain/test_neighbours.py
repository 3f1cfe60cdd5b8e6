"""Retrieval of many images is that of a sample of them among all."""

import tracemalloc

import numpy as np
import pytest

from pipeline.explain import neighbours


def features() -> tuple[np.ndarray, np.ndarray]:
    """120 images of 6 classes, most of them near their class; the first eight are the same picture."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 6, 120)
    points = np.eye(6)[labels] + random.normal(scale=0.45, size=(120, 6))
    points[:8] = points[0]
    return points.astype(np.float32), labels


def test_an_image_of_a_sample_looks_among_all_others_and_never_finds_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points, labels = features()
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    near = np.argsort(-similarity, axis=1)
    same = labels[near] == labels[:, None]
    whole = neighbours.recall(points, labels, (1, 5))
    assert whole == pytest.approx(
        {k: same[:, :k].any(axis=1).mean() for k in (1, 5)}, abs=8 / 120
    )  # ties of the copies
    monkeypatch.setattr(neighbours, "MANY_IMAGES", 100)
    monkeypatch.setattr(neighbours, "QUERIES", 120)
    assert neighbours.recall(points, labels, (1, 5)) == pytest.approx(whole, abs=8 / 120)
    monkeypatch.setattr(neighbours, "QUERIES", 40)
    drawn = neighbours.queries_of(120)
    assert len(set(drawn.tolist())) == 40
    expected = {k: same[drawn, :k].any(axis=1).mean() for k in (1, 5)}
    assert neighbours.recall(points, labels, (1, 5)) == pytest.approx(expected, abs=8 / 40)
    assert expected[1] < 0.95


def test_copies_beyond_the_neighbours_leave_each_image_as_many_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbours, "MANY_IMAGES", 5)
    labels = np.arange(12) // 6
    points = np.eye(2, dtype=np.float32)[
        labels
    ]  # six copies of two pictures: an image is not among its five nearest
    assert neighbours.recall(points, labels, (1, 3)) == {1: 1.0, 3: 1.0}


def test_the_distances_of_all_pairs_are_never_held_at_once() -> None:
    n = 8_000
    points = np.random.default_rng(0).standard_normal((n, 16)).astype(np.float32)
    tracemalloc.start()
    try:
        near, _ = neighbours.nearest(points, None, 3)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert near.shape == (n, 3)
    assert (
        peak_bytes < n * n * points.itemsize
    )  # float32 distances and their int64 order would be three times that
