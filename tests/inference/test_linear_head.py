"""The linear head against scikit-learn's on the same features, and what its weight decay is chosen by."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss

from pipeline.inference import linear_head
from pipeline.inference.linear_head import Images, fit_linear_head
from tests.helpers.drawn_features import CLASSES, DIMENSIONS, TEST, TRAIN, VAL


def regression(weight_decay: float) -> tuple[LogisticRegression, float]:
    """Scikit-learn's on the features as the linear head scales them; it sums losses, and C is for the sum."""
    centred = TRAIN.features - TRAIN.features.mean(axis=0)
    scale = float(1 / np.sqrt((centred**2).sum(axis=1).mean()))
    strength = 1 / (weight_decay * len(TRAIN.labels))
    return LogisticRegression(C=strength, tol=1e-7, max_iter=10_000).fit(centred * scale, TRAIN.labels), scale


def test_weight_decay_is_the_best_of_validation_and_the_head_is_that_of_scikit_learn() -> None:
    fitted = fit_linear_head(TRAIN, VAL, CLASSES)
    scores, probability = {}, {}
    for decay in linear_head.WEIGHT_DECAYS:
        reference, scale = regression(decay)
        of_val, of_test = (
            reference.predict_proba((images.features - TRAIN.features.mean(axis=0)) * scale)
            for images in (VAL, TEST)
        )
        top1 = accuracy_score(VAL.labels, of_val.argmax(axis=1))
        scores[decay] = top1, -log_loss(VAL.labels, of_val)
        probability[decay] = of_test
    assert len({top1 for top1, _ in scores.values()}) > 2
    decay = fitted.setting
    assert decay == max(scores, key=lambda value: scores[value])
    assert fitted.val_top1 == scores[decay][0]
    np.testing.assert_allclose(softmax(fitted.model(TEST.features), axis=1), probability[decay], atol=2e-3)


@pytest.mark.parametrize("decay", [1e-1, 1e-3])
def test_the_minimum_of_two_classes_has_no_slope(decay: float) -> None:
    inputs, labels = torch.from_numpy(TRAIN.features).double(), torch.from_numpy(TRAIN.labels % 2)
    start = inputs.new_zeros(2, DIMENSIONS), inputs.new_zeros(2)
    weight, bias = linear_head.minimise(inputs, labels, decay, *start)
    logits = inputs @ weight.T + bias
    error = (logits.softmax(1) - torch.nn.functional.one_hot(labels)) / len(labels)
    slope = error.T @ inputs + decay * weight
    assert slope.abs().max() < 2e-5
    assert error.sum(0).abs().max() < 2e-5
    assert logits.argmax(1).eq(labels).double().mean() > 0.6


def test_the_unit_of_the_features_does_not_matter() -> None:
    def in_other_units(images: Images) -> Images:
        return Images((images.features * 64 + 1024).astype(np.float32), images.labels)

    before = fit_linear_head(TRAIN, VAL, CLASSES)
    after = fit_linear_head(in_other_units(TRAIN), in_other_units(VAL), CLASSES)
    assert after.setting == before.setting
    np.testing.assert_allclose(
        softmax(after.model(in_other_units(TEST).features), axis=1),
        softmax(before.model(TEST.features), axis=1),
        atol=5e-3,
    )


def test_of_equal_accuracies_the_lower_cross_entropy_is_chosen() -> None:
    far = Images(np.eye(2, dtype=np.float32).repeat(20, axis=0), np.arange(2).repeat(20))
    chosen = fit_linear_head(far, far, 2)
    assert chosen.val_top1 == 1
    assert chosen.setting < 1e-5


def test_weights_of_plain_features_give_the_same_logits() -> None:
    head = fit_linear_head(TRAIN, VAL, CLASSES).model
    weight, bias = head.of_plain_features()
    assert weight.dtype == bias.dtype == torch.float32
    plain = torch.nn.functional.linear(torch.from_numpy(TEST.features), weight, bias)
    np.testing.assert_allclose(plain, head(TEST.features), atol=1e-5)
