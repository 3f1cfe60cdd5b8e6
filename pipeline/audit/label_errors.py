"""Likely label errors: confident learning (Northcutt et al. 2021, cleanlab) over out-of-sample votes.

A model repeats the label of an image that it was trained on, so its own probabilities cannot reveal a wrong
label. Therefore the nearest neighbours of an image in the model's feature space vote, without the image itself.

The features were learned from the labels of train, so fewer errors are found in train than in val and test; in
these, mistakes of the model are among the suspects. Features that have not seen the labels make other mistakes: where
there are some, the votes of both are averaged, and fewer images are listed for as many errors. The list is for a
person to read.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from pipeline.data import sample_table
from pipeline.explain import neighbours
from pipeline.inference.features import Features

NEIGHBOURS = 20


def likely_errors(samples: pd.DataFrame, *features: Features) -> pd.DataFrame:
    """The images whose label their neighbours contradict, the most doubtful first.

    Args:
        samples: rows of the sample table, [n].
        features: float32 [n, D] of one network or more, in the same order; their votes are averaged.

    Returns:
        A row an image: id, path, split, class_name, suggested_name, and score (0..1, cleanlab's normalised
        margin of the listed class; a low score is doubtful).
    """
    labels = samples["label"].to_numpy("int64")
    names = np.asarray(sample_table.class_names(samples), dtype=object)
    votes = np.mean([neighbour_votes(each, labels, len(names)) for each in features], axis=0)
    doubtful = find_label_issues(labels, votes, filter_by="confident_learning", n_jobs=1)
    score = get_label_quality_scores(labels, votes, method="normalized_margin")
    listed = samples[["id", "path", "split", "class_name"]].assign(
        suggested_name=names[votes.argmax(axis=1)], score=score
    )
    suspects: pd.DataFrame = listed[doubtful]
    return suspects.sort_values(["score", "id"], ignore_index=True)


def neighbour_votes(
    features: Features, labels: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.float64]:
    """The labels of the nearest other images by cosine as probabilities: float64 [n, C].

    20 neighbours vote, or half the mean size of a class where that is less. Their shares are squared and
    normalised: confident learning flags a label when the vote for another class is above that class's mean vote,
    and as some labels of the neighbours are wrong too, plain shares would leave a quarter of the errors below it.
    """
    n = len(features)
    nearest, _ = neighbours.nearest(features, None, max(1, min(NEIGHBOURS, n // (2 * classes))))
    cells = np.arange(n)[:, None] * classes + labels[nearest]
    votes = np.bincount(cells.ravel(), minlength=n * classes).reshape(n, classes).astype(np.float64) ** 2
    return np.asarray(votes / votes.sum(axis=1, keepdims=True), np.float64)
