"""Validation is drawn from the official training images; the official test set stays untouched.

mmpretrain's CUB configurations, Hawkeye and FGVCLib choose the best epoch on the test set: their
published figures carry that choice. Here, no code that reads the drawn splits can.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import seeding
from pipeline.common.errors import DataError, name_some

Ids = npt.NDArray[np.int64]


class Sizes(NamedTuple):
    """How many images each split keeps; None: all of them, or of validation what the fraction says."""

    train: int | None = None
    val: int | None = None
    test: int | None = None


ALL = Sizes()


def draw(
    table: pd.DataFrame,
    *,
    val_fraction: float,
    folds: int | None,
    fold: int,
    seed: int,
    sizes: Sizes = ALL,
) -> pd.DataFrame:
    """Add the column `split` ("train", "val" or "test") to a sample table; rows that no split keeps are dropped.

    Each class is shuffled by its own generator and cut: the first `round(val_fraction * n)` of its
    n official training images validate (at least one, at most n - 1, when the fraction is above
    0); with `folds`, every `folds`-th image beginning at `fold`; with a size, its share of that size.
    A class of one training image keeps it for training. A smaller test set is the same for every seed.

    Raises:
        DataError: the data set has fewer images than `sizes` asks for, or a class would lose all.
    """
    train = _shuffled(table[table["official"] == "train"], "split", seed)
    test = _shuffled(table[table["official"] == "test"], "test images", 0)
    if sizes.val is None:
        val = {label: _held_out(ids, val_fraction, folds, fold) for label, ids in train.items()}
    else:
        val = _share(train, sizes.val, "data.val_images", left=1)
    train = {label: ids[~np.isin(ids, val[label])] for label, ids in train.items()}
    if sizes.train is not None:
        if sizes.train < len(train):
            raise DataError(f"data.train_images: {sizes.train} are fewer than the {len(train)} classes")
        train = _share(train, sizes.train, "data.train_images")
    if sizes.test is not None:
        test = _share(test, sizes.test, "data.test_images")
    splits = {"train": train, "val": val, "test": test}
    split_of = {int(i): name for name, ids in splits.items() for i in np.concatenate([*ids.values(), []])}
    drawn = table.assign(split=table["id"].map(split_of)).dropna(subset="split").reset_index(drop=True)
    if gone := sorted(set(table["class_name"]).difference(drawn["class_name"])):
        raise DataError(
            f"data.test_images: {sizes.test} leave no image at all of {name_some(gone)}; take more"
        )
    return drawn


def _shuffled(table: pd.DataFrame, name: str, seed: int) -> dict[int, Ids]:
    """The ids of each class, in an order that does not depend on that of the table."""
    return {
        int(str(label)): seeding.generator(name, seed, int(str(label))).permutation(
            np.sort(rows["id"].to_numpy())
        )
        for label, rows in table.groupby("label")
    }


def _held_out(ids: Ids, val_fraction: float, folds: int | None, fold: int) -> Ids:
    """The part of a class's shuffled training images that validates; the only image of a class never does."""
    if len(ids) == 1 or (folds is None and not val_fraction):
        return ids[:0]
    if folds is not None:
        return ids[fold::folds]
    return ids[: max(1, min(round(val_fraction * len(ids)), len(ids) - 1))]


def _share(classes: Mapping[int, Ids], count: int, key: str, left: int = 0) -> dict[int, Ids]:
    """The first ids of each class, `count` in all: one of each class if they suffice, the rest by its size.

    Args:
        left: how many images of each class are never taken.
    """
    free = {label: max(0, len(ids) - left) for label, ids in classes.items()}
    if count > (available := sum(free.values())):
        raise DataError(
            f"{key}: {count:,} are asked for, and {available:,} images are left for it; take fewer"
        )
    candidates = [(index / len(ids), label) for label, ids in classes.items() for index in range(free[label])]
    taken = pd.Series([label for _, label in sorted(candidates)[:count]]).value_counts()
    return {label: ids[: int(taken.get(label, 0))] for label, ids in classes.items()}
