"""Numbers from a table of predictions, against a hand-worked one, scikit-learn and published values."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from torch import tensor
from torch.nn.functional import cross_entropy

from pipeline.evaluation import confusion, metrics
from pipeline.evaluation import statistics as statistics_module

NAMES = ["wren", "gull", "crow", "owl"]  # not in the order of the alphabet; no image is an owl
LABELS = [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
GUESSES = [0, 0, 0, 1, 1, 0, 2, 1, 3, 1]


def table(labels: list[int], logits: np.ndarray, names: list[str] = NAMES) -> pd.DataFrame:
    samples = pd.DataFrame(
        {
            "id": np.arange(len(labels)) * 3 + 1,
            "path": [f"{n}.jpg" for n in range(len(labels))],
            "label": labels,
            "class_name": [names[label] for label in labels],
        }
    )
    return metrics.predictions_table(samples, logits.astype(np.float32), names)


def guessed() -> pd.DataFrame:
    """Ten images; the guess has probability 1/2, the other three classes 1/6 each."""
    return table(LABELS, np.log(np.full((10, 4), 1 / 6) + np.eye(4)[GUESSES] / 3))


def random_table(n: int = 300, classes: int = 12) -> tuple[pd.DataFrame, list[int], np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, n)
    logits = random.normal(size=(n, classes)) + 2 * np.eye(classes)[labels] * random.random((n, 1))
    names = [f"bird {label}" for label in range(classes)]
    return table(labels.tolist(), logits, names), labels.tolist(), logits.astype(np.float32)


def test_a_row_says_what_was_predicted_for_which_image() -> None:
    row = table([2], np.log([[0.1, 0.6, 0.25, 0.05]])).iloc[0].to_dict()
    confidence, probability = row.pop("confidence"), row.pop("probability")
    assert row == {
        "id": 1,
        "path": "0.jpg",
        "label": 2,
        "class_name": "crow",
        "predicted": 1,
        "predicted_name": "gull",
        "rank": 2,
    }
    assert (confidence, probability) == pytest.approx((0.6, 0.25))


def test_the_summary_of_the_hand_worked_table() -> None:
    summary = metrics.summary(guessed())
    expected = {
        "n": 10,
        "top1": 0.5,
        "top1_low": 0.236593,
        "top1_high": 0.763407,
        "top3": 0.9,  # of the crow taken for an owl, wren and gull stand before its own class
        "top5": 1.0,
        "per_class_mean": (3 / 4 + 1 / 2 + 1 / 4) / 3,
        "macro_precision": (3 / 4 + 1 / 4 + 1) / 3,
        "macro_f1": (3 / 4 + 1 / 3 + 2 / 5) / 3,
        "nll": (5 * math.log(2) + 5 * math.log(6)) / 10,
    }
    assert {name: summary[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_the_classes_of_the_hand_worked_table() -> None:
    classes = metrics.per_class(guessed(), NAMES)
    assert classes["class_name"].tolist() == NAMES
    assert classes["n"].tolist() == [4, 2, 4, 0]
    assert classes["correct"].tolist() == [3, 1, 1, 0]
    assert classes["accuracy"].tolist() == pytest.approx([0.75, 0.5, 0.25, math.nan], nan_ok=True)
    assert classes["precision"].tolist() == pytest.approx([3 / 4, 1 / 4, 1, 0])
    assert classes["recall"].tolist() == pytest.approx([0.75, 0.5, 0.25, math.nan], nan_ok=True)
    assert classes["f1"].tolist() == pytest.approx([3 / 4, 1 / 3, 2 / 5, math.nan], nan_ok=True)
    assert classes["accuracy_low"].tolist() == pytest.approx([0.300642, 0.094531, 0.045587, 0], abs=1e-6)
    assert classes["accuracy_high"].tolist() == pytest.approx([0.954413, 0.905469, 0.699358, 1], abs=1e-6)


def test_precision_of_a_class_that_is_never_named_is_0_where_it_has_images_and_none_where_it_has_none() -> (
    None
):
    predicted = table(
        [0, 0, 1], np.eye(4)[[0, 2, 0]]
    )  # gulls are never named; crows have no image; owls neither
    assert metrics.per_class(predicted, NAMES)["precision"].tolist() == pytest.approx(
        [0.5, 0, 0, math.nan], nan_ok=True
    )
    assert metrics.summary(predicted)["macro_precision"] == pytest.approx((0.5 + 0) / 2)


def test_rows_of_the_confusion_are_true_classes() -> None:
    matrix = confusion.matrix(guessed(), NAMES)
    assert matrix.index.tolist() == matrix.columns.tolist() == NAMES
    assert matrix.to_numpy().tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [0, 2, 1, 1], [0, 0, 0, 0]]


def test_confused_pairs_count_both_directions_and_the_most_frequent_stand_first() -> None:
    pairs = confusion.pairs(guessed())
    assert pairs.to_numpy().tolist() == [
        ["crow", "gull", 2, 2, 0],
        ["gull", "wren", 2, 1, 1],
        ["crow", "owl", 1, 1, 0],
    ]
    wrens_as_gulls = table([0, 0, 1], np.eye(4)[[1, 1, 0]])
    assert confusion.pairs(wrens_as_gulls).to_numpy().tolist() == [["gull", "wren", 3, 1, 2]]


def test_without_mistakes_there_are_no_pairs() -> None:
    pairs = confusion.pairs(table([0, 1, 2], np.eye(4)[:3]))
    assert pairs.empty
    assert pairs.columns.tolist() == ["class_a", "class_b", "images", "a_as_b", "b_as_a"]


def test_random_predictions_have_the_figures_of_scikit_learn_and_torch() -> None:
    predicted, labels, logits = random_table()
    guesses, names = logits.argmax(axis=1), [f"bird {label}" for label in range(12)]
    numbers = metrics.summary(predicted)
    assert numbers["top1"] == pytest.approx(sk.accuracy_score(labels, guesses))
    assert numbers["top5"] == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=5))
    assert numbers["per_class_mean"] == pytest.approx(sk.balanced_accuracy_score(labels, guesses))
    assert numbers["nll"] == pytest.approx(cross_entropy(tensor(logits), tensor(labels)).item(), rel=1e-5)
    assert 0.2 < numbers["top1"] < numbers["top5"] < 0.99
    classes = metrics.per_class(predicted, names)
    assert classes["accuracy"].tolist() == pytest.approx(sk.recall_score(labels, guesses, average=None))
    assert classes["precision"].tolist() == pytest.approx(sk.precision_score(labels, guesses, average=None))
    counts = confusion.matrix(predicted, names).to_numpy()
    assert (counts == sk.confusion_matrix(labels, guesses)).all()
    pairs = confusion.pairs(predicted)
    assert pairs["images"].sum() == counts.sum() - counts.trace()
    assert pairs["images"].is_monotonic_decreasing


def test_the_mean_over_classes_is_not_the_mean_over_images() -> None:
    numbers = metrics.summary(table([0] * 9 + [1], np.eye(4)[[0] * 10]))
    assert (numbers["top1"], numbers["per_class_mean"]) == pytest.approx((0.9, 0.5))


def test_of_equal_logits_the_lower_class_counts_as_the_better() -> None:
    names = [f"bird {label}" for label in range(8)]
    predicted = table(list(range(8)), np.zeros((8, 8)), names)
    assert predicted["predicted"].tolist() == [0] * 8
    assert predicted["rank"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert metrics.summary(predicted)["top5"] == 5 / 8
    assert metrics.summary(predicted)["top1"] == 1 / 8


def test_rank_1_is_the_predicted_class_and_no_other() -> None:
    predicted, _, _ = random_table()
    assert ((predicted["rank"] == 1) == (predicted["label"] == predicted["predicted"])).all()
    assert ((predicted["rank"] == 1) == (predicted["confidence"] == predicted["probability"])).all()


def test_extreme_logits_give_finite_numbers() -> None:
    numbers = metrics.summary(table([0, 1], np.array([[1e4, -1e4, 0, 0], [3e38, -3e38, 0, 0]])))
    assert numbers["top1"] == 0.5
    assert numbers["nll"] == pytest.approx(300 * math.log(10) / 2)


def test_bootstrap_intervals_are_scikit_learns_figures_over_the_same_resamples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = np.vstack(list(statistics_module.resamples(300, 150)))
    monkeypatch.setattr(statistics_module, "resamples", lambda _: iter(np.array_split(weights, 3)))
    predicted, labels, logits = random_table()
    numbers, guesses = metrics.summary(predicted), logits.argmax(axis=1)
    statistics = {
        "top1_bootstrap": lambda weight: sk.accuracy_score(labels, guesses, sample_weight=weight),
        "top3": lambda weight: sk.top_k_accuracy_score(labels, logits, k=3, sample_weight=weight),
        "per_class_mean": lambda weight: sk.balanced_accuracy_score(labels, guesses, sample_weight=weight),
        "macro_precision": lambda weight: sk.precision_score(
            labels, guesses, average="macro", sample_weight=weight, zero_division=0
        ),
        "macro_f1": lambda weight: sk.f1_score(labels, guesses, average="macro", sample_weight=weight),
    }
    for name, statistic in statistics.items():
        low, high = np.percentile([statistic(weight) for weight in weights], [2.5, 97.5])
        assert (numbers[f"{name}_low"], numbers[f"{name}_high"]) == pytest.approx((low, high)), name
        assert numbers[name.removesuffix("_bootstrap")] == pytest.approx(statistic(np.ones(300))), name


def test_accuracy_against_training_count() -> None:
    classes = metrics.per_class(guessed(), NAMES, [30, 20, 10, 5])
    assert classes["train_images"].tolist() == [30, 20, 10, 5]
    assert metrics.accuracy_by_training_count(classes)["train_images_rho"] == pytest.approx(1.0)
    shuffled = metrics.per_class(guessed(), NAMES, [10, 30, 20, 5])
    correlation = metrics.accuracy_by_training_count(shuffled)
    assert correlation["train_images_rho"] == pytest.approx(-0.5)  # ranks 1 3 2 against 3 2 1
    equal = metrics.per_class(guessed(), NAMES, [30, 30, 30, 30])
    assert metrics.accuracy_by_training_count(equal) == {
        "train_images_rho": None,
        "train_images_rho_p": None,
    }
