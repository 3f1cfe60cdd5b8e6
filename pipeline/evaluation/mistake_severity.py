"""How far a mistake is from the truth in the hierarchy of the classes: a gull taken for a gull, or for a tern.

A mistake's height is that of the lowest node above both classes: 1 where they share the finest rank (the genus), 2
where only the next (the family), ..., and one more than there are ranks where they share none. It is 0 for a right
prediction. Means over mistakes and over all images are the mistake severity and the hierarchical distance of
Bertinetto et al. 2020 (arXiv:1912.09393).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.taxonomy import CLASS, Taxonomy
from pipeline.evaluation import statistics

PAIRS = 10
"""pairs of nodes that are named for a rank"""


def heights(predicted: pd.DataFrame, taxonomy: Taxonomy) -> npt.NDArray[np.int64]:
    """The height of each prediction, int64 [n], 0..ranks + 1.

    Args:
        predicted: the predictions table: label, predicted.
    """
    label, guess = predicted["label"].to_numpy(), predicted["predicted"].to_numpy()
    shared = [label == guess]
    for rank in taxonomy.ranks:
        node = taxonomy.node_of_class(rank)
        shared.append(node[label] == node[guess])
    # A node has one parent: what is shared at a rank is shared at all coarser ones.
    return np.asarray(len(shared) - np.sum(shared, axis=0), np.int64)


def summary(predicted: pd.DataFrame, taxonomy: Taxonomy) -> dict[str, Any]:
    """What metrics.json has of it, in plain types.

    height (None without a mistake) and distance: means over mistakes and over all images, with NAME_low and NAME_high,
    95 % intervals by the bootstrap over images. ranks: see `by_rank`; each but the class with across, see `across`.
    """
    height = heights(predicted, taxonomy).astype(np.float64)
    wrong = (height > 0).astype(np.float64)
    sums, mistakes = np.hstack(
        [np.stack([weights @ height, weights @ wrong]) for weights in statistics.resamples(len(height))]
    )
    ranks = by_rank(predicted, taxonomy).to_dict("records")
    for row in ranks[1:]:
        row["across"] = across(predicted, taxonomy, row["rank"]).head(PAIRS).to_dict("records")
    mean = _with_interval("distance", height.mean(), sums / len(height))
    if not wrong.any():
        return {"height": None, **mean, "ranks": ranks}
    of_mistakes = np.divide(sums, mistakes, out=np.full(len(sums), np.nan), where=mistakes > 0)
    return _with_interval("height", height.sum() / wrong.sum(), of_mistakes) | mean | {"ranks": ranks}


def _with_interval(name: str, value: float, resampled: npt.NDArray[np.float64]) -> dict[str, float]:
    low, high = statistics.percentiles(resampled)
    return {name: float(value), f"{name}_low": low, f"{name}_high": high}


def by_rank(predicted: pd.DataFrame, taxonomy: Taxonomy) -> pd.DataFrame:
    """A row a rank, the class first: rank, nodes, correct, accuracy with its Wilson interval, mistakes.

    correct: images whose predicted class lies in the right node. mistakes: those whose true and predicted class share
    this rank and none finer; of the class, 0.
    """
    height, n = heights(predicted, taxonomy), len(predicted)
    rows = []
    for above, rank in enumerate((CLASS, *taxonomy.ranks)):
        nodes = len(taxonomy.classes) if rank == CLASS else len(taxonomy.names(rank))
        correct = int((height <= above).sum())
        low, high = statistics.wilson(correct, n)
        rows.append(
            {
                "rank": rank,
                "nodes": nodes,
                "n": n,
                "correct": correct,
                "accuracy": correct / n,
                "accuracy_low": low,
                "accuracy_high": high,
                "mistakes": 0 if rank == CLASS else int((height == above).sum()),
            }
        )
    return pd.DataFrame(rows)


def across(predicted: pd.DataFrame, taxonomy: Taxonomy, rank: str) -> pd.DataFrame:
    """The mistakes that leave a node of a rank, most frequent first: true_node, predicted_node, images.

    Args:
        rank: one of the hierarchy's.
    """
    node, names = taxonomy.node_of_class(rank), np.array(taxonomy.names(rank), object)
    true, guess = (node[predicted[column].to_numpy()] for column in ("label", "predicted"))
    left = pd.DataFrame({"true_node": names[true], "predicted_node": names[guess]})[true != guess]
    counts: pd.DataFrame = left.value_counts().rename("images").reset_index()
    return counts.sort_values(
        ["images", "true_node", "predicted_node"], ascending=[False, True, True], ignore_index=True
    )
