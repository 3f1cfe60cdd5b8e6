"""Likely label errors: confident learning (Northcutt et al. 2021, cleanlab) over out-of-sample votes.

Of an image that it was trained on a model says what it was told, so its own probabilities cannot accuse
the label. Here the vote of the image's nearest neighbours in the model's feature space stands in, the
image itself left out.

The features were learned from the labels of train, so what the votes say there is milder than of val and
test; and in these the model's own mistakes are among the suspects. The list is for a person to read.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from pipeline.data import sample_table

NEIGHBOURS = 20
CHUNK = 512  # images at a time: their similarities to 11,788 others take 24 MB

Features = npt.NDArray[np.float32]


def likely_errors(samples: pd.DataFrame, features: Features) -> pd.DataFrame:
    """The images whose label their neighbours contradict, the most doubtful first.

    Args:
        samples: rows of the sample table, [n].
        features: float32 [n, D], in that order.

    Returns:
        A row an image: id, path, split, class_name, suggested_name, and score (0..1, cleanlab's normalised
        margin of the listed class: the lower, the more doubtful).
    """
    labels = samples["label"].to_numpy("int64")
    names = np.asarray(sample_table.class_names(samples), dtype=object)
    votes = neighbour_votes(features, labels, len(names))
    doubtful = find_label_issues(labels, votes, filter_by="confident_learning", n_jobs=1)
    score = get_label_quality_scores(labels, votes, method="normalized_margin")
    found = samples[["id", "path", "split", "class_name"]].assign(
        suggested_name=names[votes.argmax(axis=1)], score=score
    )
    suspects: pd.DataFrame = found[doubtful]
    return suspects.sort_values(["score", "id"], ignore_index=True)


def neighbour_votes(
    features: Features, labels: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.float64]:
    """What the nearest other images by cosine are listed as: probabilities, float64 [n, C].

    20 neighbours vote, or half the mean size of a class where that is less. Their shares are squared and
    normalised: confident learning asks for a vote above the class's mean, and of neighbours some labels
    are wrong too, so that plain shares would leave a quarter of the errors below it.
    """
    unit = normalised(features)
    count = max(1, min(NEIGHBOURS, len(unit) // (2 * classes)))
    votes = np.empty((len(unit), classes))
    for start in range(0, len(unit), CHUNK):
        similarity = unit[start : start + CHUNK] @ unit.T
        own = np.arange(len(similarity))
        similarity[own, start + own] = -np.inf
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        places = own[:, None] * classes + labels[nearest]
        counts = np.bincount(places.ravel(), minlength=len(own) * classes).reshape(len(own), classes)
        votes[start : start + CHUNK] = counts**2
    return np.asarray(votes / votes.sum(axis=1, keepdims=True), np.float64)


def normalised(features: Features) -> Features:
    """Features of length 1, so that their products are cosines: float32 [n, D]."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12), np.float32)
