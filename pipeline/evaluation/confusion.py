"""Confusion of classes: the matrix, the confused pairs, and an order in which similar classes are neighbours."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.special import softmax
from sklearn.metrics import confusion_matrix


def matrix(predicted: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Counts [C, C]: a row a true class, a column a predicted one, both by name."""
    counts = confusion_matrix(predicted["label"], predicted["predicted"], labels=range(len(names)))
    return pd.DataFrame(counts, index=pd.Index(names, name="class_name"), columns=list(names))


def pairs(predicted: pd.DataFrame) -> pd.DataFrame:
    """The pairs of classes that are mistaken for each other, the most frequent first.

    A row a pair: class_a, class_b, images (both directions together), a_as_b, b_as_a.
    """
    wrong = predicted[predicted["label"] != predicted["predicted"]]
    counts = wrong.groupby(["class_name", "predicted_name"]).size()
    directions: dict[tuple[str, str], list[int]] = {}
    for names, count in counts.items():
        true, guess = map(str, names)  # type: ignore[call-overload]
        a, b = sorted((true, guess))
        directions.setdefault((a, b), [0, 0])[int(a != true)] += int(count)
    rows = [(a, b, ab + ba, ab, ba) for (a, b), (ab, ba) in directions.items()]
    table = pd.DataFrame(rows, columns=["class_a", "class_b", "images", "a_as_b", "b_as_a"])
    return table.sort_values(
        ["images", "class_a", "class_b"], ascending=[False, True, True], ignore_index=True
    )


def order(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], names: Sequence[str]
) -> pd.DataFrame:
    """An order of the classes in which those that the model confuses are neighbours.

    A class is represented by the mean of the probabilities of its images; the distance of two classes is
    Hellinger's. Average linkage gives a tree, and its leaves are ordered so that the sum of the distances between
    neighbours is minimal (Bar-Joseph et al. 2001, scipy's implementation). Classes without images are last.
    A row a class: position, label, class_name.
    """
    present = np.unique(labels)
    probability = softmax(logits.astype(np.float64), axis=1)
    means = np.stack([probability[labels == label].mean(axis=0) for label in present])
    if len(present) > 2:
        tree = linkage(np.sqrt(means / 2), method="average", optimal_ordering=True)
        present = present[leaves_list(tree)]
        present = present if present[0] < present[-1] else present[::-1]
    placed = [*present, *np.setdiff1d(np.arange(len(names)), present)]
    return pd.DataFrame(
        {
            "position": range(len(placed)),
            "label": placed,
            "class_name": [names[label] for label in placed],
        }
    )
