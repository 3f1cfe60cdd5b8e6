"""Validation is drawn from the official training images; the official test set stays untouched.

mmpretrain's CUB configurations, Hawkeye and FGVCLib choose the best epoch on the test set: their
published figures carry that choice. Here nothing behind this file can.
"""

import numpy as np
import pandas as pd

from pipeline import seeding
from pipeline.errors import DataError


def draw(
    table: pd.DataFrame, *, val_fraction: float, folds: int | None, fold: int, seed: int
) -> pd.DataFrame:
    """Add the column `split` ("train", "val" or "test") to a sample table.

    Each class is shuffled by its own generator and cut: the first `round(val_fraction * n)` of its
    n official training images validate (at least one, at most n - 1, when the fraction is above
    0); with `folds`, every `folds`-th image beginning at `fold`.

    Raises:
        DataError: a class has too few training images to be split so.
    """
    split = table["official"].to_numpy(dtype=object, copy=True)
    for label, rows in table[table["official"] == "train"].groupby("label"):
        ids = np.sort(rows["id"].to_numpy())
        shuffled = seeding.generator("split", seed, int(str(label))).permutation(ids)
        if folds is not None:
            held_out = shuffled[fold::folds]
        elif val_fraction:
            held_out = shuffled[: max(1, min(round(val_fraction * len(ids)), len(ids) - 1))]
        else:
            held_out = shuffled[:0]
        if len(held_out) == len(ids) or (folds is not None and len(held_out) == 0):
            raise DataError(
                f"{rows['class_name'].iloc[0]}: {len(ids)} training images are too few to hold some out; "
                "lower data.folds or set data.val_fraction=0"
            )
        split[table["id"].isin(held_out).to_numpy()] = "val"
    return table.assign(split=split)
