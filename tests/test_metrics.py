"""Numbers from a table of predictions, against a hand-worked one, scikit-learn and published values."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from torch import tensor
from torch.nn.functional import cross_entropy

from pipeline import confusion, intervals, metrics

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
    return metrics.predictions(samples, logits.astype(np.float32), names)


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
    found = metrics.summary(guessed())
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
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_the_classes_of_the_hand_worked_table() -> None:
    found = metrics.per_class(guessed(), NAMES)
    assert found["class_name"].tolist() == NAMES
    assert found["n"].tolist() == [4, 2, 4, 0]
    assert found["correct"].tolist() == [3, 1, 1, 0]
    assert found["accuracy"].tolist() == pytest.approx([0.75, 0.5, 0.25, math.nan], nan_ok=True)
    assert found["precision"].tolist() == pytest.approx([3 / 4, 1 / 4, 1, 0])
    assert found["recall"].tolist() == pytest.approx([0.75, 0.5, 0.25, math.nan], nan_ok=True)
    assert found["f1"].tolist() == pytest.approx([3 / 4, 1 / 3, 2 / 5, math.nan], nan_ok=True)
    assert found["accuracy_low"].tolist() == pytest.approx([0.300642, 0.094531, 0.045587, 0], abs=1e-6)
    assert found["accuracy_high"].tolist() == pytest.approx([0.954413, 0.905469, 0.699358, 1], abs=1e-6)


def test_rows_of_the_confusion_are_true_classes() -> None:
    found = confusion.counts(guessed(), NAMES)
    assert found.index.tolist() == found.columns.tolist() == NAMES
    assert found.to_numpy().tolist() == [[3, 1, 0, 0], [1, 1, 0, 0], [0, 2, 1, 1], [0, 0, 0, 0]]


def test_confused_pairs_count_both_directions_and_the_most_frequent_stand_first() -> None:
    found = confusion.pairs(guessed())
    assert found.to_numpy().tolist() == [
        ["crow", "gull", 2, 2, 0],
        ["gull", "wren", 2, 1, 1],
        ["crow", "owl", 1, 1, 0],
    ]
    wrens_as_gulls = table([0, 0, 1], np.eye(4)[[1, 1, 0]])
    assert confusion.pairs(wrens_as_gulls).to_numpy().tolist() == [["gull", "wren", 3, 1, 2]]


def test_without_mistakes_there_are_no_pairs() -> None:
    found = confusion.pairs(table([0, 1, 2], np.eye(4)[:3]))
    assert found.empty
    assert found.columns.tolist() == ["class_a", "class_b", "images", "a_as_b", "b_as_a"]


def test_random_predictions_have_the_figures_of_scikit_learn_and_torch() -> None:
    predicted, labels, logits = random_table()
    guesses, names = logits.argmax(axis=1), [f"bird {label}" for label in range(12)]
    numbers = metrics.summary(predicted)
    assert numbers["top1"] == pytest.approx(sk.accuracy_score(labels, guesses))
    assert numbers["top5"] == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=5))
    assert numbers["per_class_mean"] == pytest.approx(sk.balanced_accuracy_score(labels, guesses))
    assert numbers["nll"] == pytest.approx(cross_entropy(tensor(logits), tensor(labels)).item(), rel=1e-5)
    assert 0.2 < numbers["top1"] < numbers["top5"] < 0.99
    found = metrics.per_class(predicted, names)
    assert found["accuracy"].tolist() == pytest.approx(sk.recall_score(labels, guesses, average=None))
    assert found["precision"].tolist() == pytest.approx(sk.precision_score(labels, guesses, average=None))
    counts = confusion.counts(predicted, names).to_numpy()
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


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilsons_interval_is_the_published_one(successes: int, n: int, low: float, high: float) -> None:
    assert intervals.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
