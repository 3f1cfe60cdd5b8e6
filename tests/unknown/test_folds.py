import numpy as np
import pytest

from pipeline.answering import unknown_scores
from pipeline.inference.linear_head import Images
from pipeline.unknown import folds, measures


def images(n: int, classes: int, seed: int, apart: float = 4.0) -> Images:
    """Features of classes with means of their own, the same ones for each seed."""
    centres = apart * np.random.default_rng(0).normal(size=(classes, 8))
    labels = np.arange(n) % classes
    noise = np.random.default_rng(seed).normal(size=(n, 8))
    return Images((centres[labels] + noise).astype(np.float32), labels)


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The first feature of each image that the k-nearest score learned from, a list a fold."""
    seen: list[list[float]] = []
    fit = unknown_scores.fit

    def noting(name: unknown_scores.Name, train: Images) -> unknown_scores.Score:
        if name == "knn":
            seen.append(train.features[:, 0].tolist())
        return fit(name, train)

    monkeypatch.setattr(folds.unknown_scores, "fit", noting)
    return seen


def test_each_class_is_left_out_once_and_nothing_learns_from_it_then(learned: list[list[float]]) -> None:
    train, val = images(110, 11, 1), images(44, 11, 2)
    label_of = dict(zip(train.features[:, 0].tolist(), train.labels.tolist(), strict=True))
    folds.promises(train, val, val, 0, 0.95)
    remaining = [{label_of[value] for value in fold} for fold in learned]
    left_out = [set(range(11)) - fold for fold in remaining]
    assert len(left_out) == 5
    assert sorted(label for fold in left_out for label in fold) == list(range(11))
    assert max(map(len, left_out)) == folds.most_left_out(11) == 3


def test_classes_that_lie_apart_are_refused_and_the_seed_draws_the_folds(learned: list[list[float]]) -> None:
    train, val = images(200, 10, 1), images(100, 10, 2)
    promises = folds.promises(train, val, val, 0, 0.95)
    assert set(promises) == set(unknown_scores.NAMES)
    for name in ("rmds", "knn"):
        assert promises[name].auroc.value > 0.95
        assert promises[name].refused.value > 0.8
    of_seed_0 = list(learned)
    learned.clear()
    folds.promises(train, val, val, 1, 0.95)
    assert learned != of_seed_0


def test_labels_that_say_nothing_promise_nothing() -> None:
    train, val = images(100, 10, 1, apart=0), images(200, 10, 2, apart=0)
    for promise in folds.promises(train, val, val, 0, 0.9).values():
        assert promise.auroc.low < 0.5 < promise.auroc.high
        assert promise.refused.value == pytest.approx(0.1, abs=0.08)


def test_the_promised_share_is_that_of_each_folds_own_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = images(80, 4, 1), images(80, 4, 2)
    limits: list[float] = []
    threshold = measures.threshold

    def noting(known: measures.Floats, kept: float) -> float:
        assert len(known) == 40  # two of the four classes remain
        limits.append(threshold(known, kept))
        return limits[-1]

    monkeypatch.setattr(folds.measures, "threshold", noting)
    folds.promises(train, val, val, 0, 0.95)
    assert len(limits) == 2 * len(unknown_scores.NAMES)
