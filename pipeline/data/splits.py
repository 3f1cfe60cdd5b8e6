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
from pipeline.common.errors import DataError

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
    A smaller test set is the same for every seed.

    Raises:
        DataError: a class, or the data set, has too few images to be split so.
    """
    train = _shuffled(table[table["official"] == "train"], "split", seed)
    test = _shuffled(table[table["official"] == "test"], "test images", 0)
    if sizes.val is None:
        names = dict(zip(table["label"].tolist(), table["class_name"].tolist(), strict=True))
        val = {
            label: _held_out(ids, val_fraction, folds, fold, str(names[label]))
            for label, ids in train.items()
        }
    else:
        val = _share(train, sizes.val, "data.val_images")
    train = {label: ids[~np.isin(ids, val[label])] for label, ids in train.items()}
    if sizes.train is not None:
        if sizes.train < len(train):
            raise DataError(f"data.train_images: {sizes.train} are fewer than the {len(train)} classes")
        train = _share(train, sizes.train, "data.train_images")
    if sizes.test is not None:
        test = _share(test, sizes.test, "data.test_images")
    splits = {"train": train, "val": val, "test": test}
    split_of = {int(i): name for name, ids in splits.items() for i in np.concatenate([*ids.values(), []])}
    drawn = table.assign(split=table["id"].map(split_of))
    return drawn[drawn["split"].notna()].reset_index(drop=True)


def _shuffled(table: pd.DataFrame, name: str, seed: int) -> dict[int, Ids]:
    """The ids of each class, in an order that does not depend on that of the table."""
    return {
        int(str(label)): seeding.generator(name, seed, int(str(label))).permutation(
            np.sort(rows["id"].to_numpy())
        )
        for label, rows in table.groupby("label")
    }


def _held_out(ids: Ids, val_fraction: float, folds: int | None, fold: int, class_name: str) -> Ids:
    """The part of a class's shuffled training images that validates."""
    if folds is not None:
        held_out = ids[fold::folds]
    elif val_fraction:
        held_out = ids[: max(1, min(round(val_fraction * len(ids)), len(ids) - 1))]
    else:
        held_out = ids[:0]
    if len(held_out) == len(ids) or (folds is not None and len(held_out) == 0):
        raise DataError(
            f"{class_name}: {len(ids)} training images are too few to hold some out; "
            "lower data.folds or set data.val_fraction=0"
        )
    return held_out


def _share(classes: Mapping[int, Ids], count: int, key: str) -> dict[int, Ids]:
    """The first ids of each class, `count` in all: one of each class if they suffice, the rest by its size."""
    available = sum(len(ids) for ids in classes.values())
    if count > available:
        raise DataError(
            f"{key}: {count:,} are asked for, and {available:,} images are left for it; take fewer"
        )
    candidates = [(index / len(ids), label) for label, ids in classes.items() for index in range(len(ids))]
    taken = pd.Series([label for _, label in sorted(candidates)[:count]]).value_counts()
    return {label: ids[: int(taken.get(label, 0))] for label, ids in classes.items()}
