"""Prediction sets: thresholds and scores worked out by hand, and the promise over many draws."""

from typing import Any

import numpy as np
import pytest

from pipeline.evaluation import prediction_sets
from pipeline.evaluation.set_rule import SetRule
from pipeline.runs.predictions import Validation

FOUR = np.log(np.array([[0.5, 0.3, 0.15, 0.05], [0.1, 0.6, 0.2, 0.1]], np.float32))


def drawn(n: int, seed: int, classes: int = 6) -> tuple[Any, Any]:
    """Logits of n images, and labels that are drawn by other probabilities than the logits say."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, classes)).astype(np.float32)
    truth = np.exp(0.5 * logits) / np.exp(0.5 * logits).sum(axis=1, keepdims=True)
    label = (truth.cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
    return logits, np.minimum(label, classes - 1)


def test_scores_of_both_methods() -> None:
    probability = np.exp(FOUR.astype(np.float64))
    first, second = np.repeat(probability, 4, axis=0).reshape(2, 4, 4)
    each = np.arange(4)
    assert prediction_sets.lac_score(first, each) == pytest.approx([0.5, 0.7, 0.85, 0.95])
    assert prediction_sets.aps_score(first, each) == pytest.approx([0, 0.5, 0.8, 0.95])
    assert prediction_sets.aps_score(second, each) == pytest.approx([0.8, 0, 0.6, 0.8])  # 0.1 twice: a tie


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_set_has_the_classes_whose_score_is_not_above_the_threshold(method: Any) -> None:
    logits, _ = drawn(50, 3)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    each = np.tile(np.arange(6), 50)
    score = prediction_sets.SCORES[method](np.repeat(probability, 6, axis=0), each).reshape(50, 6)
    expected = score <= 0.6
    expected[np.arange(50), logits.argmax(axis=1)] = True
    assert np.array_equal(SetRule(method, 0.9, 99, 0.6).sets(logits), expected)


def test_threshold_is_the_score_at_the_place_that_the_theorem_asks_for() -> None:
    """Nine images, coverage 0.8: the ceil(10 x 0.8) = 8th smallest score."""
    probability = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3])
    logits = np.log(np.column_stack([probability, 1 - probability])).astype(np.float32)
    rule = prediction_sets.calibrate("lac", logits, np.zeros(9, np.int64), 0.8)
    assert rule.threshold == pytest.approx(1 - 0.35, abs=1e-6)
    assert rule.n == 9


def test_too_few_images_promise_nothing_and_every_class_is_in_the_set() -> None:
    rule = prediction_sets.calibrate("lac", FOUR, np.array([0, 1]), 0.9)
    assert rule.threshold is None
    assert rule.sets(FOUR).all()


def test_sets_have_the_classes_up_to_the_threshold_and_one_at_least() -> None:
    lac = SetRule("lac", 0.9, 99, 0.75)
    assert lac.sets(FOUR).tolist() == [[True, True, False, False], [False, True, False, False]]
    aps = SetRule("aps", 0.9, 99, 0.65)
    assert aps.sets(FOUR).tolist() == [[True, True, False, False], [False, True, True, False]]
    strict = SetRule("lac", 0.9, 99, 0.1)
    assert strict.sets(FOUR).tolist() == [[True, False, False, False], [False, True, False, False]]


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_promise_is_kept_on_average_by_a_network_that_is_far_too_sure(method: Any) -> None:
    """Over 200 draws of 99 validation images the mean coverage is 0.9 (standard error 0.003)."""
    covered = []
    for seed in range(200):
        rule = prediction_sets.calibrate(method, *drawn(99, seed), 0.9)
        logits, label = drawn(300, 1_000 + seed)
        covered.append(rule.sets(logits)[np.arange(300), label].mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.01)


def test_summary_says_what_the_sets_came_to() -> None:
    """Ten validation images whose classes all have 0.5 ask for sets of all classes with 0.5 or more."""
    half = np.log(np.full((10, 2), 0.5, np.float32))
    validation = Validation(half, np.zeros(10, np.int64))
    logits = np.log(np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.3, 0.7]], np.float32))
    numbers = prediction_sets.summary(logits, np.array([0, 1, 0, 1]), validation)["lac"]
    assert (numbers["threshold"], numbers["n"], numbers["coverage"]) == (0.5, 10, 0.9)
    assert (numbers["covered"], numbers["size"], numbers["size_median"]) == (0.75, 1.25, 1.0)
    # Wilson's of 3 of 4, by hand: (0.75 + 0.480 -+ 0.634) / (1 + 0.960)
    assert numbers["covered_low"] == pytest.approx(0.301, abs=1e-3)
    assert numbers["covered_high"] == pytest.approx(0.954, abs=1e-3)
