"""The order of the classes puts those side by side that are taken for each other."""

import itertools

import numpy as np

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
