"""Which classes are taken for which: counts, pairs, and an order that puts the alike side by side."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.special import softmax
from sklearn.metrics import confusion_matrix


def matrix(predicted: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Counts [C, C]: a row a true class, a column a predicted one, both by name."""
    found = confusion_matrix(predicted["label"], predicted["predicted"], labels=range(len(names)))
    return pd.DataFrame(found, index=pd.Index(names, name="class_name"), columns=list(names))


def pairs(predicted: pd.DataFrame) -> pd.DataFrame:
    """The pairs of classes taken for each other, most often first.

    A row a pair: class_a, class_b, images (both directions together), a_as_b, b_as_a.
    """
    wrong = predicted[predicted["label"] != predicted["predicted"]]
    taken = wrong.groupby(["class_name", "predicted_name"]).size()
    found: dict[tuple[str, str], list[int]] = {}
    for names, count in taken.items():
        true, guess = map(str, names)  # type: ignore[call-overload]
        a, b = sorted((true, guess))
        found.setdefault((a, b), [0, 0])[int(a != true)] += int(count)
    rows = [(a, b, ab + ba, ab, ba) for (a, b), (ab, ba) in found.items()]
    table = pd.DataFrame(rows, columns=["class_a", "class_b", "images", "a_as_b", "b_as_a"])
    return table.sort_values(
        ["images", "class_a", "class_b"], ascending=[False, True, True], ignore_index=True
    )


def order(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], names: Sequence[str]
) -> pd.DataFrame:
    """An order of the classes in which those that the model takes for each other are neighbours.

    Each class is the mean of the probabilities given to its images; the distance of two classes is
    Hellinger's; average linkage gives a tree whose leaves are ordered so that the distances between
    neighbours add up to the least (Bar-Joseph et al. 2001, as scipy has it). Classes without images
    stand at the end. A row a class: position, label, class_name.
    """
    seen = np.unique(labels)
    probability = softmax(logits.astype(np.float64), axis=1)
    means = np.stack([probability[labels == label].mean(axis=0) for label in seen])
    if len(seen) > 2:
        tree = linkage(np.sqrt(means / 2), method="average", optimal_ordering=True)
        seen = seen[leaves_list(tree)]
        seen = seen if seen[0] < seen[-1] else seen[::-1]
    placed = [*seen, *np.setdiff1d(np.arange(len(names)), seen)]
    return pd.DataFrame(
        {
            "position": range(len(placed)),
            "label": placed,
            "class_name": [names[label] for label in placed],
        }
    )
