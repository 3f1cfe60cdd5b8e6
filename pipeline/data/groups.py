"""Splits that never part a group of images: the same bird, the same burst of pictures, the same place.

A group may hold images of several classes. What is asked for, a share of each class, is met as nearly as whole groups
allow.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data.sample_table import GROUP

Ids = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
TRAINS = -1
"""in the place of a fold: of a group that no fold holds"""


def of(table: pd.DataFrame) -> pd.Series | None:
    """The group of each image, by id; an image without one is alone in its own. None: the table has no groups."""
    if GROUP not in table or not (table[GROUP] != "").any():
        return None
    alone = "image " + table["id"].astype(str)
    return alone.where(table[GROUP] == "", "group " + table[GROUP]).set_axis(table["id"].to_numpy())


def hold_out(
    classes: Mapping[int, Ids], group: pd.Series, fraction: float, rng: np.random.Generator
) -> dict[int, Ids]:
    """The images of whole groups that are held out: about `fraction` of each class, and at least one where it can be.

    Groups are tried in a drawn order; one is taken where that brings the classes nearer to their shares (the squared
    distances, each over the images of the class). Each class keeps an image at least. Then classes of which nothing
    is held out take their smallest group.
    """
    names, counts = _counts(classes, group)
    total = counts.sum(axis=0)
    held, taken = np.zeros(len(total)), np.zeros(len(names), bool)
    if fraction > 0:
        for row in rng.permutation(len(names)):
            after = held + counts[row]
            nearer = ((after - fraction * total) ** 2 - (held - fraction * total) ** 2) / total
            if nearer.sum() < 0 and (after < total)[counts[row] > 0].all():
                held, taken[row] = after, True
        smallest_first = np.argsort(counts.sum(axis=1), kind="stable")
        for column in np.flatnonzero(held == 0):
            for row in smallest_first[counts[smallest_first, column] > 0]:
                after = held + counts[row]
                if not held[column] and (after < total)[counts[row] > 0].all():
                    held, taken[row] = after, True
    return _images(classes, group, names[taken])


def fold(
    classes: Mapping[int, Ids], group: pd.Series, folds: int, index: int, rng: np.random.Generator
) -> dict[int, Ids]:
    """The images of one of several folds of whole groups.

    The largest groups first, and those of a size in a drawn order, each goes to the fold that has least of its classes
    (as scikit-learn's StratifiedGroupKFold, whose order depends on its version), of the folds that leave each class an
    image for training. A group for which there is no such fold, as that with all images of a class, always trains.
    """
    names, counts = _counts(classes, group)
    total = counts.sum(axis=0)
    shares = counts / total
    drawn = rng.permutation(len(names))
    order = drawn[np.argsort(-counts[drawn].sum(axis=1), kind="stable")]
    filled, fold_of = np.zeros((folds, counts.shape[1])), np.full(len(names), TRAINS)
    held = np.zeros((folds, counts.shape[1]), np.int64)
    for row in order:
        own = counts[row] > 0
        leaves_some = (held[:, own] + counts[row, own] < total[own]).all(axis=1)
        if leaves_some.any():
            fold_of[row] = np.argmin(np.where(leaves_some, filled @ shares[row], np.inf))
            filled[fold_of[row]] += shares[row]
            held[fold_of[row]] += counts[row]
    return _images(classes, group, names[fold_of == index])


def _counts(classes: Mapping[int, Ids], group: pd.Series) -> tuple[npt.NDArray[np.object_], Counts]:
    """The names of the groups, rising, [G], and how many images of each class each has: [G, C]."""
    by_class = {label: group.loc[list(ids)].value_counts() for label, ids in classes.items()}
    counts = pd.DataFrame(by_class).fillna(0).astype("int64").sort_index()
    return counts.index.to_numpy(object), counts.to_numpy()


def _images(classes: Mapping[int, Ids], group: pd.Series, taken: npt.NDArray[np.object_]) -> dict[int, Ids]:
    is_taken = group.isin(list(taken))
    return {label: ids[is_taken.loc[list(ids)].to_numpy()] for label, ids in classes.items()}
