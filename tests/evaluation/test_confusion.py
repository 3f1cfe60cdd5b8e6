"""The order of the classes puts those side by side that are taken for each other."""

import itertools

import numpy as np
import pandas as pd
import pytest

from pipeline.common import arrays
from pipeline.evaluation import confusion

GENERA = [[0, 3, 6], [1, 4], [2, 5]]  # labels that resemble each other
NAMES = [f"bird {label}" for label in range(8)]


def alike(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Logits high for the whole genus of the true class; no image of class 7."""
    random = np.random.default_rng(1)
    labels = random.integers(0, 7, n)
    logits = random.normal(scale=0.5, size=(n, 8)).astype(np.float32)
    for genus in GENERA:
        logits[np.ix_(np.isin(labels, genus), genus)] += 3
    logits[np.arange(n), labels] += 1
    return logits, labels


def test_classes_that_resemble_each_other_are_neighbours() -> None:
    logits, labels = alike()
    order = confusion.order(logits, labels, NAMES)
    assert order["position"].tolist() == list(range(8))
    assert sorted(order["label"]) == list(range(8))
    assert order["class_name"].tolist() == [NAMES[label] for label in order["label"]]
    place = dict(zip(order["label"], order["position"], strict=True))
    for genus in GENERA:
        places = sorted(place[label] for label in genus)
        assert places == list(range(places[0], places[0] + len(genus)))


def test_the_order_is_the_best_that_the_tree_allows() -> None:
    logits, labels = alike()
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    means = np.sqrt([probability[labels == label].mean(axis=0) for label in range(7)])

    def length(order: list[int]) -> float:
        return sum(float(np.linalg.norm(means[a] - means[b])) for a, b in itertools.pairwise(order))

    labels_in_order = confusion.order(logits, labels, NAMES)["label"].tolist()[:7]
    random = np.random.default_rng(0)
    assert length(labels_in_order) < min(length(random.permutation(7).tolist()) for _ in range(200))


def test_a_class_without_images_stands_at_the_end() -> None:
    logits, labels = alike()
    assert confusion.order(logits, labels, NAMES)["label"].iloc[-1] == 7
    two = confusion.order(logits[labels < 2], labels[labels < 2], NAMES)
    assert two["label"].tolist() == list(range(8))


def test_of_many_classes_neighbours_resemble_each_other_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "MANY_CLASSES", 3)
    monkeypatch.setattr(confusion, "ROWS_AT_ONCE", 2)
    logits, labels = alike()
    place = {label: at for at, label in enumerate(confusion.order(logits, labels, NAMES)["label"])}
    for genus in GENERA:
        places = sorted(place[label] for label in genus)
        assert places == list(range(places[0], places[0] + len(genus)))


def test_the_order_is_the_same_however_many_rows_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = alike()
    whole = confusion.order(logits, labels, NAMES)
    monkeypatch.setattr(arrays, "BLOCK_ELEMENTS", 24)
    assert confusion.order(logits, labels, NAMES).equals(whole)


def test_the_matrix_of_many_classes_is_a_list_of_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    label, guess = [2, 0, 2, 0, 2], [0, 0, 2, 1, 0]
    names = ["owl", "owl", "wren"]  # two classes may have one name
    predicted = pd.DataFrame(
        {
            "label": label,
            "predicted": guess,
            "class_name": [names[at] for at in label],
            "predicted_name": [names[at] for at in guess],
        }
    )
    dense = confusion.table(predicted, names)
    assert dense["class_name"].tolist() == names
    assert dense.drop(columns="class_name").to_numpy().tolist() == [[1, 1, 0], [0, 0, 0], [2, 0, 1]]
    monkeypatch.setattr(confusion, "MANY_CLASSES", 2)
    assert confusion.table(predicted, names).to_dict("split")["data"] == [
        [0, "owl", 0, "owl", 1],
        [0, "owl", 1, "owl", 1],
        [2, "wren", 0, "owl", 2],
        [2, "wren", 2, "wren", 1],
    ]
