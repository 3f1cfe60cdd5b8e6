"""The classifiers against scikit-learn's on the same features, and what they choose by."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import normalize

from pipeline.probe import classifiers
from pipeline.probe.classifiers import Fitted, Images

CLASSES, DIMENSIONS = 5, 12


def drawn(count: int, seed: int) -> Images:
    """Overlapping classes around five centres far from zero, as the features of a network are."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, DIMENSIONS))
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    features = 3 + centres[labels] + 1.2 * random.normal(size=(count, DIMENSIONS))
    return Images(features.astype(np.float32), labels)


TRAIN, VAL, TEST = drawn(150, 1), drawn(100, 2), drawn(200, 3)
NONE = Images(np.empty((0, DIMENSIONS), np.float32), np.empty(0, np.int64))


def best(scores: dict[float, tuple[float, float]]) -> float:
    return max(scores, key=lambda value: scores[value])


def guesses(fitted: Fitted, images: Images = TEST) -> list[int]:
    return fitted.logits(images.features).argmax(axis=1).tolist()


def test_k_is_the_best_of_validation_and_the_votes_are_those_of_scikit_learn() -> None:
    fitted = classifiers.fit_knn(TRAIN, VAL, CLASSES)
    references = {
        k: KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(*TRAIN) for k in classifiers.KS
    }
    top1 = {k: reference.score(*VAL) for k, reference in references.items()}
    assert fitted.val_top1 == max(top1.values()) > min(top1.values())
    k = int(fitted.setting["k"])
    assert top1[k] == fitted.val_top1
    assert guesses(fitted) == references[k].predict(TEST.features).tolist()
    shares = references[k].predict_proba(TEST.features)
    probability = softmax(fitted.logits(TEST.features), axis=1)
    np.testing.assert_allclose(probability, (shares * k + 1 / CLASSES) / (k + 1), atol=1e-6)


def test_class_means_are_those_of_scikit_learn_on_centred_unit_features() -> None:
    centre = TRAIN.features.mean(axis=0)
    reference = NearestCentroid().fit(normalize(TRAIN.features - centre), TRAIN.labels)
    fitted = classifiers.fit_means(TRAIN, VAL, CLASSES)
    assert guesses(fitted) == reference.predict(normalize(TEST.features - centre)).tolist()
    assert fitted.val_top1 == reference.score(normalize(VAL.features - centre), VAL.labels)
    assert fitted.setting == {}


def regression(weight_decay: float) -> tuple[LogisticRegression, float]:
    """Scikit-learn's on the features as the linear head scales them; it sums losses, and C is for the sum."""
    centred = TRAIN.features - TRAIN.features.mean(axis=0)
    scale = float(1 / np.sqrt((centred**2).sum(axis=1).mean()))
    strength = 1 / (weight_decay * len(TRAIN.labels))
    return LogisticRegression(C=strength, tol=1e-7, max_iter=10_000).fit(centred * scale, TRAIN.labels), scale


def test_weight_decay_is_the_best_of_validation_and_the_head_is_that_of_scikit_learn() -> None:
    fitted = classifiers.fit_linear(TRAIN, VAL, CLASSES)
    scores, probability = {}, {}
    for decay in classifiers.WEIGHT_DECAYS:
        reference, scale = regression(decay)
        of_val, of_test = (
            reference.predict_proba((images.features - TRAIN.features.mean(axis=0)) * scale)
            for images in (VAL, TEST)
        )
        top1 = accuracy_score(VAL.labels, of_val.argmax(axis=1))
        scores[decay] = top1, -log_loss(VAL.labels, of_val)
        probability[decay] = of_test
    assert len({top1 for top1, _ in scores.values()}) > 2
    decay = fitted.setting["weight_decay"]
    assert decay == best(scores)
    assert fitted.val_top1 == scores[decay][0]
    np.testing.assert_allclose(softmax(fitted.logits(TEST.features), axis=1), probability[decay], atol=2e-3)


@pytest.mark.parametrize("decay", [1e-1, 1e-3])
def test_the_minimum_of_two_classes_has_no_slope(decay: float) -> None:
    inputs, labels = torch.from_numpy(TRAIN.features).double(), torch.from_numpy(TRAIN.labels % 2)
    start = inputs.new_zeros(2, DIMENSIONS), inputs.new_zeros(2)
    weight, bias = classifiers.minimise(inputs, labels, decay, *start)
    logits = inputs @ weight.T + bias
    error = (logits.softmax(1) - torch.nn.functional.one_hot(labels)) / len(labels)
    slope = error.T @ inputs + decay * weight
    assert slope.abs().max() < 2e-5
    assert error.sum(0).abs().max() < 2e-5
    assert logits.argmax(1).eq(labels).double().mean() > 0.6


def test_without_validation_the_settings_are_fixed() -> None:
    linear, knn, means = classifiers.fit_all(TRAIN, NONE, CLASSES)
    assert linear.setting == {"weight_decay": classifiers.DEFAULT_WEIGHT_DECAY}
    assert knn.setting == {"k": classifiers.DEFAULT_K}
    assert [linear.val_top1, knn.val_top1, means.val_top1] == [None] * 3
    reference = KNeighborsClassifier(classifiers.DEFAULT_K, metric="cosine", algorithm="brute").fit(*TRAIN)
    assert guesses(knn) == reference.predict(TEST.features).tolist()


def test_a_class_without_a_training_image_is_never_the_answer() -> None:
    taught = TRAIN.labels != 2
    train = Images(TRAIN.features[taught], TRAIN.labels[taught])
    for fitted in classifiers.fit_all(train, VAL, CLASSES):
        logits = fitted.logits(TEST.features)
        assert logits.shape == (len(TEST.labels), CLASSES)
        assert np.isfinite(logits).all()
        assert set(guesses(fitted)) == {0, 1, 3, 4}


def test_fewer_training_images_than_k_are_all_asked() -> None:
    few = Images(TRAIN.features[:4], TRAIN.labels[:4])
    fitted = classifiers.fit_knn(few, NONE, CLASSES)
    assert fitted.setting == {"k": 4}
    assert set(guesses(fitted)) == {int(np.bincount(few.labels).argmax())}


def test_the_unit_of_the_features_does_not_matter() -> None:
    def in_other_units(images: Images) -> Images:
        return Images((images.features * 64 + 1024).astype(np.float32), images.labels)

    before = classifiers.fit_linear(TRAIN, VAL, CLASSES)
    after = classifiers.fit_linear(in_other_units(TRAIN), in_other_units(VAL), CLASSES)
    assert after.setting == before.setting
    np.testing.assert_allclose(
        softmax(after.logits(in_other_units(TEST).features), axis=1),
        softmax(before.logits(TEST.features), axis=1),
        atol=5e-3,
    )


def test_of_equal_accuracies_the_lower_cross_entropy_is_chosen() -> None:
    far = Images(np.eye(2, dtype=np.float32).repeat(20, axis=0), np.arange(2).repeat(20))
    chosen = classifiers.fit_linear(far, far, 2)
    assert chosen.val_top1 == 1
    assert chosen.setting == {"weight_decay": min(classifiers.WEIGHT_DECAYS)}
