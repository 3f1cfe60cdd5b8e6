"""Validation is drawn from the official training images; the official test set stays untouched.

Where a data set has no test, one is drawn first, the same for every seed; and images of one group stay together.

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
from pipeline.data import groups
from pipeline.data.sample_table import EITHER

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
    test_fraction: float = 0.0,
) -> pd.DataFrame:
    """Add the column `split` ("train", "val" or "test") to a sample table; rows that no split keeps are dropped.

    Each class is shuffled by its own generator and cut: the first `round(val_fraction * n)` of its
    n official training images validate (at least one, at most n - 1, when the fraction is above
    0); with `folds`, every `folds`-th image beginning at `fold`; with a size, its share of that size.
    A class of one training image keeps it for training. A smaller test set is the same for every seed.
    Official validation images validate, and then none are drawn.

    Args:
        test_fraction: of the images that may be for the test (`EITHER`); drawn alike for every seed.

    Raises:
        DataError: the images or groups are fewer than is asked for, or a class would lose all.
    """
    official = table["official"].where(~table["id"].isin(_drawn_test(table, test_fraction)), "test")
    train = _shuffled(table[official.isin(["train", EITHER])], "split", seed)
    test = _shuffled(table[official == "test"], "test images", 0)
    group = groups.of(table)
    _check_validation(official, folds, sizes, group)
    if (official == "val").any():
        val = _shuffled(table[official == "val"], "split", seed)
    elif group is not None:
        val = _groups_held_out(train, group, val_fraction, folds, fold, seed)
    elif sizes.val is None:
        val = {label: _held_out(ids, val_fraction, folds, fold) for label, ids in train.items()}
    else:
        val = _share(train, sizes.val, "data.val_images", left=1)
    train = {label: ids[~np.isin(ids, val.get(label, ids[:0]))] for label, ids in train.items()}
    if sizes.train is not None:
        train = _share(train, sizes.train, "data.train_images", needs_all=True)
    if sizes.test is not None:
        test = _share(test, sizes.test, "data.test_images")
    split_of = _split_of({"train": train, "val": val, "test": test})
    drawn = table.assign(split=table["id"].map(split_of)).dropna(subset="split").reset_index(drop=True)
    if gone := sorted(set(table["class_name"]).difference(drawn["class_name"])):
        raise DataError(
            f"data.test_images: {sizes.test} leave no image at all of {name_some(gone)}; take more"
        )
    return drawn


def _split_of(splits: Mapping[str, Mapping[int, Ids]]) -> pd.Series:
    """The split of each image that has one, by its id."""
    ids = [np.concatenate([np.empty(0, np.int64), *classes.values()]) for classes in splits.values()]
    return pd.Series(np.repeat(np.array(list(splits), object), [*map(len, ids)]), np.concatenate(ids))


def _drawn_test(table: pd.DataFrame, fraction: float) -> Ids:
    """The ids of the images that are drawn as the test of a data set that has none."""
    undecided = table[table["official"] == EITHER]
    if not fraction or undecided.empty:
        return np.empty(0, np.int64)
    classes, group = _shuffled(undecided, "test split", 0), groups.of(undecided)
    if group is None:
        test = {label: _held_out(ids, fraction, None, 0) for label, ids in classes.items()}
    else:
        test = groups.hold_out(classes, group, fraction, seeding.generator("group test split", 0))
    names = undecided.set_index("label")["class_name"]
    if untested := [names.loc[[label]].iloc[0] for label, ids in test.items() if not len(ids)]:
        raise DataError(
            f"data.test_fraction: no test image of {name_some(untested)} can be drawn, for too few of their images or "
            "groups can be taken; say what is for the test (folders train and test, or a column split), or set "
            "data.test_fraction=0"
        )
    return np.concatenate(list(test.values()))


def _check_validation(official: pd.Series, folds: int | None, sizes: Sizes, group: pd.Series | None) -> None:
    """Raise a `DataError` where keys ask for validation images that the table does not give."""
    key = "data.folds" if folds is not None else "data.val_images" if sizes.val is not None else ""
    if key and (official == "val").any():
        raise DataError(f"{key}: the data set has validation images of its own; drop {key}")
    if sizes.val is not None and group is not None:
        raise DataError("data.val_images: single images would part groups; set data.val_fraction instead")


def _shuffled(table: pd.DataFrame, name: str, seed: int) -> dict[int, Ids]:
    """The ids of each class, in an order that does not depend on that of the table."""
    return {
        int(str(label)): seeding.generator(name, seed, int(str(label))).permutation(np.sort(ids.to_numpy()))
        for label, ids in table.groupby("label")["id"]
    }


def _held_out(ids: Ids, val_fraction: float, folds: int | None, fold: int) -> Ids:
    """The part of a class's shuffled training images that validates; the only image of a class never does."""
    if len(ids) == 1 or (folds is None and not val_fraction):
        return ids[:0]
    if folds is not None:
        return ids[fold::folds]
    return ids[: count_held_out(len(ids), val_fraction)]


def count_held_out(images: int, fraction: float) -> int:
    """How many of a class's images, 2 or more, a fraction above 0 holds out: at least one, at most all but one."""
    return max(1, min(round(fraction * images), images - 1))


def _groups_held_out(
    classes: Mapping[int, Ids], group: pd.Series, val_fraction: float, folds: int | None, fold: int, seed: int
) -> dict[int, Ids]:
    """The part of each class's training images that validates, in whole groups."""
    if folds is None:
        return groups.hold_out(classes, group, val_fraction, seeding.generator("group split", seed))
    return groups.fold(classes, group, folds, fold, seeding.generator("group folds", seed))


def _share(
    classes: Mapping[int, Ids], count: int, key: str, left: int = 0, needs_all: bool = False
) -> dict[int, Ids]:
    """The first ids of each class, `count` in all: one of each class if they suffice, the rest by its size.

    Args:
        left: how many images of each class are never taken.
        needs_all: whether `count` has to suffice for one of each class.
    """
    if needs_all and count < len(classes):
        raise DataError(f"{key}: {count} are fewer than the {len(classes)} classes")
    sizes = np.array([len(ids) for ids in classes.values()], np.int64)
    free = np.maximum(sizes - left, 0)
    if count > (available := int(free.sum())):
        raise DataError(
            f"{key}: {count:,} are asked for, and {available:,} images are left for it; take fewer"
        )
    position = np.repeat(
        np.arange(len(classes)), free
    )  # of the class, one entry an image; classes are in order
    index = np.arange(len(position)) - (np.cumsum(free) - free)[position]
    first = np.lexsort((position, index / sizes[position]))[:count]
    taken = np.bincount(position[first], minlength=len(classes))
    return {label: ids[:n] for (label, ids), n in zip(classes.items(), taken.tolist(), strict=True)}
