"""Confusion of classes: the matrix, the confused pairs, and an order in which similar classes are neighbours.

With more than 1,000 classes the matrix is a list of its cells, and the order follows the tree without the search for the
best one: both grow with the square of the classes, or faster.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

from pipeline.common import arrays

MANY_CLASSES = 1_000
ROWS_AT_ONCE = 256
CELLS = ["label", "class_name", "predicted", "predicted_name"]


def matrix(predicted: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Counts [C, C]: a row a true class, a column a predicted one, both by name."""
    counts = confusion_matrix(predicted["label"], predicted["predicted"], labels=range(len(names)))
    return pd.DataFrame(counts, index=pd.Index(names, name="class_name"), columns=list(names))


def cells(predicted: pd.DataFrame) -> pd.DataFrame:
    """The cells of the matrix that are not 0: label, class_name, predicted, predicted_name, images; by their labels."""
    keys = [predicted[name].to_numpy("int64") for name in ("label", "predicted")]
    _, first, images = np.unique(np.stack(keys, axis=1), axis=0, return_index=True, return_counts=True)
    return predicted[CELLS].iloc[first].assign(images=images).reset_index(drop=True)


def table(predicted: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """What confusion.csv holds: the matrix with `class_name` as its first column; of many classes, its `cells`."""
    return matrix(predicted, names).reset_index() if len(names) <= MANY_CLASSES else cells(predicted)


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
    neighbours is minimal (Bar-Joseph et al. 2001, scipy's implementation); those of more than 1,000 classes are not
    ordered. Classes without images are last.
    A row a class: position, label, class_name.
    """
    present = np.unique(labels)
    if len(present) > 2:
        vectors = _mean_probabilities(logits, labels, present)
        vectors /= 2
        np.sqrt(vectors, out=vectors)
        if len(present) <= MANY_CLASSES:
            tree = linkage(vectors, method="average", optimal_ordering=True)
        else:
            tree = linkage(_distances(vectors), method="average")
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


def _mean_probabilities(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], present: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The mean of the probabilities of the images of each class that is present: [P, C]."""
    sums = np.zeros((len(present), logits.shape[1]))
    place = np.searchsorted(present, labels)
    for rows, block in arrays.blocks(logits):
        for at, probability in zip(place[rows], softmax(block.astype(np.float64), axis=1), strict=True):
            sums[at] += probability
    sums /= np.bincount(place)[:, None]
    return sums


def _distances(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The distances of all pairs as `linkage` takes them: float64 [P * (P - 1) / 2]; a matrix product, in float32."""
    short = vectors.astype(np.float32)
    squares, n, end = np.einsum("pc,pc->p", short, short), len(short), 0
    found = np.empty(n * (n - 1) // 2)
    for top in range(0, n, ROWS_AT_ONCE):
        products = short[top : top + ROWS_AT_ONCE] @ short[top:].T
        for row, product in enumerate(products):
            start, end = end, end + n - top - row - 1
            near = squares[top + row] + squares[top + row + 1 :] - 2 * product[row + 1 :]
            found[start:end] = np.sqrt(np.maximum(near, 0))
    return found
