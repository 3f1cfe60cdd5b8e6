"""The classifiers against scikit-learn's on the same features, and what they choose by."""

import numpy as np
from scipy.special import softmax
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import normalize

from pipeline.inference import linear_head
from pipeline.inference.linear_head import Images
from pipeline.probe import classifiers
from pipeline.probe.classifiers import Fitted
from tests.helpers.drawn_features import CLASSES, NONE, TEST, TRAIN, VAL


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


def test_without_validation_the_settings_are_fixed() -> None:
    linear, knn, means = classifiers.fit_all(TRAIN, NONE, CLASSES)
    assert linear.setting == {"weight_decay": linear_head.DEFAULT_WEIGHT_DECAY}
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
