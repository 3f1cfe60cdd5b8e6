"""Calibration and selective prediction against hand-worked tables, scikit-learn and the definition."""

import math

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss

from pipeline.common import arrays
from pipeline.evaluation import calibration


def random_outputs(n: int = 4_000, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are drawn with the probabilities that the logits say."""
    random = np.random.default_rng(5)
    logits = random.normal(scale=2, size=(n, classes)).astype(np.float32)
    chance = softmax(logits.astype(np.float64), axis=1).cumsum(axis=1)
    return logits, (random.random((n, 1)) > chance).sum(axis=1).clip(max=classes - 1)


def test_likelihood_and_brier_score_are_those_of_scikit_learn() -> None:
    logits, labels = random_outputs()
    log_probability = calibration.log_probabilities(logits)
    probability = np.exp(log_probability)
    assert calibration.nll(log_probability, labels).mean() == pytest.approx(log_loss(labels, probability))
    expected = brier_score_loss(labels, probability, scale_by_half=False)
    assert calibration.brier(log_probability, labels).mean() == pytest.approx(expected)


def test_brier_score_of_a_hand_worked_image() -> None:
    log_probability = np.log([[0.7, 0.2, 0.1]])
    assert calibration.brier(log_probability, np.array([1])) == pytest.approx([0.49 + 0.64 + 0.01])


def test_reliability_and_expected_error_of_a_hand_worked_table() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.5, 0.5, 1 / 15, 1.0])
    correct = np.array([1, 1, 1, 0, 1, 0, 0, 1], float)
    bins = calibration.reliability(confidence, correct)
    assert bins["n"].tolist() == [1] + [0] * 6 + [2] + [0] * 6 + [5]
    last, middle = bins.iloc[14], bins.iloc[7]
    assert (last["confidence"], last["accuracy"]) == pytest.approx((0.96, 0.8))
    assert (middle["confidence"], middle["accuracy"]) == pytest.approx((0.5, 0.5))
    assert math.isnan(bins["accuracy"][3])
    assert (bins["bin_low"][1], bins["bin_high"][1]) == pytest.approx((1 / 15, 2 / 15))
    assert calibration.expected_error(bins) == pytest.approx((5 * 0.16 + 0 + 1 / 15) / 8)


def test_expected_error_is_guos_formula() -> None:
    logits, labels = random_outputs()
    confidence, correct = calibration.confidence_and_correct(
        calibration.log_probabilities(logits, 0.4), labels
    )
    expected = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected > 0.05
    assert calibration.expected_error(calibration.reliability(confidence, correct)) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_known_overconfidence(scale: float) -> None:
    logits, labels = random_outputs()
    temperature = calibration.fit_temperature(scale * logits, labels)
    assert temperature == pytest.approx(scale, rel=0.06)
    assert not calibration.is_at_bound(temperature)
    # At the minimum the mean logit of the true class is the one that the probabilities expect.
    probability = np.exp(calibration.log_probabilities(scale * logits, temperature))
    expected = (probability * logits).sum(axis=1).mean()
    assert logits[np.arange(len(labels)), labels].mean() == pytest.approx(expected, abs=1e-4)


def test_without_a_mistake_the_temperature_is_its_lower_bound_and_said_so() -> None:
    temperature = calibration.fit_temperature(np.eye(3, dtype=np.float32), np.arange(3))
    assert temperature == pytest.approx(0.05)
    assert calibration.is_at_bound(temperature)


def test_coverage_of_a_hand_worked_table_answers_equal_confidences_together() -> None:
    confidence = np.array([0.9, 0.6, 0.9, 0.7, 0.6])
    correct = np.array([1, 0, 1, 0, 1], float)
    table = calibration.coverage(confidence, correct)
    assert table["threshold"].tolist() == [0.9, 0.7, 0.6]
    assert table["coverage"].tolist() == pytest.approx([0.4, 0.6, 1.0])
    assert table["accuracy"].tolist() == pytest.approx([1, 2 / 3, 3 / 5])
    expected = 0.4 * 0 + 0.2 * (1 / 3) + 0.4 * (2 / 5)
    assert calibration.area_under_risk(confidence, correct) == pytest.approx(expected)
    at = {
        share: calibration.accuracy_at_coverage(confidence, correct, share) for share in (0.2, 0.6, 0.61, 1)
    }
    assert at == pytest.approx({0.2: 1, 0.6: 2 / 3, 0.61: 3 / 5, 1: 3 / 5})


def test_a_long_coverage_table_is_thinned_and_keeps_its_ends() -> None:
    logits, labels = random_outputs()
    confidence, correct = calibration.confidence_and_correct(calibration.log_probabilities(logits), labels)
    table = calibration.coverage(confidence, correct)
    assert len(table) == calibration.COVERAGE_ROWS
    assert table["coverage"].iloc[0] == pytest.approx(1 / 4_000)
    assert table["coverage"].iloc[-1] == 1
    assert table["accuracy"].iloc[-1] == pytest.approx(correct.mean())
    for row in table.itertuples():
        assert row.accuracy == pytest.approx(correct[confidence >= row.threshold].mean())


def test_what_is_computed_of_each_image_does_not_depend_on_the_rows_read_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(2)
    logits, labels = random.normal(size=(50, 6)).astype(np.float32), random.integers(0, 6, 50)
    whole, temperature = (
        calibration.per_image(logits, labels, 1.3),
        calibration.fit_temperature(logits, labels),
    )
    monkeypatch.setattr(arrays, "BLOCK_ELEMENTS", 40)
    for one, other in zip(calibration.per_image(logits, labels, 1.3), whole, strict=True):
        assert (one == other).all()
    assert calibration.fit_temperature(logits, labels) == temperature
    log_probability = calibration.log_probabilities(logits, 1.3)
    assert (whole.nll == calibration.nll(log_probability, labels)).all()
    assert (whole.brier == calibration.brier(log_probability, labels)).all()
    assert (whole.correct == (logits.argmax(axis=1) == labels)).all()
