"""Pictures that are the same, or nearly, in groups; those across splits come first, for they leak."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.audit import duplicates
from pipeline.data import sample_table

Rows = npt.NDArray[np.int64]
EMPTY = 0.98  # share of one colour above which pictures look alike without showing the same


class Twins(NamedTuple):
    """Pictures that show the same photograph."""

    rows: tuple[int, ...]
    """of the sample table, two or more, rising"""
    splits: int
    """number of splits that they are in"""
    classes: int
    """number of classes that they are listed as"""
    bits: int
    """most bits of 256 by which the hashes of two that were linked differ; 0 for equal files"""


def exact(samples: pd.DataFrame, digests: Sequence[str]) -> list[Twins]:
    """Groups of files with the same content.

    Args:
        digests: of the files, in the table's order; "": like no other.
    """
    rows = pd.Series(np.arange(len(samples))).groupby(np.asarray(digests, object))
    groups = [list(group) for digest, group in rows if digest and len(group) > 1]
    return _in_order(_twins(samples, [(group, 0) for group in groups]))


def near(
    samples: pd.DataFrame,
    hashes: duplicates.Bits,
    one_colour: npt.NDArray[np.float64],
    digests: Sequence[str],
) -> list[Twins]:
    """Groups of pictures that are linked by close hashes, without the groups of equal files.

    Pictures of one colour alone are not compared.

    Args:
        hashes: bool [n, 256].
        one_colour: share of the most frequent colour, [n].
        digests: as for `exact`.
    """
    compared = (one_colour < EMPTY).nonzero()[0]
    if not len(compared):
        return []
    distinct, which = np.unique(hashes[compared], axis=0, return_inverse=True)
    a, b = duplicates.close_pairs(distinct)
    links = coo_array((np.ones(len(a)), (a, b)), shape=(len(distinct), len(distinct)))
    _, group_of_hash = connected_components(links, directed=False)
    distance = np.zeros(len(distinct), np.int64)
    np.maximum.at(distance, group_of_hash[a], (distinct[a] != distinct[b]).sum(axis=1))
    groups = pd.Series(compared).groupby(group_of_hash[which.ravel()])
    found = [
        (list(rows), int(distance[int(str(group))]))
        for group, rows in groups
        if len(rows) > 1 and len({digests[row] or f"only {row}" for row in rows}) > 1
    ]
    return _in_order(_twins(samples, found))


def _twins(samples: pd.DataFrame, groups: Sequence[tuple[Sequence[int], int]]) -> list[Twins]:
    """The groups, each given by its rows and the bits by which they differ."""
    splits, labels = samples["split"].tolist(), samples["label"].tolist()
    return [
        Twins(
            tuple(map(int, rows)),
            len({splits[row] for row in rows}),
            len({labels[row] for row in rows}),
            bits,
        )
        for rows, bits in groups
    ]


def _in_order(groups: list[Twins]) -> list[Twins]:
    return sorted(groups, key=lambda one: (one.splits == 1, one.classes == 1, one.bits, one.rows))


def counts(groups: Sequence[Twins]) -> dict[str, int]:
    """How many groups and pictures there are; how many groups are across splits, and listed as two classes or more."""
    return {
        "groups": len(groups),
        "images": sum(len(group.rows) for group in groups),
        "groups_across_splits": sum(group.splits > 1 for group in groups),
        "groups_of_two_classes": sum(group.classes > 1 for group in groups),
    }


def leaked_test_images(samples: pd.DataFrame, groups: Sequence[Twins]) -> int:
    """How many test images have a twin in train or in validation."""
    split = samples["split"].to_numpy()
    leaked = set()
    for group in groups:
        in_test = {row for row in group.rows if split[row] == "test"}
        leaked |= in_test if len(in_test) < len(group.rows) else set()
    return len(leaked)


def straddling(samples: pd.DataFrame) -> dict[str, Any] | None:
    """How many groups of the column `group` there are, and the names of those in two splits or more.

    None: the table has no groups.
    """
    if sample_table.GROUP not in samples:
        return None
    named = samples[samples[sample_table.GROUP] != ""]
    splits = named.groupby(sample_table.GROUP)["split"].nunique()
    return {"groups": len(splits), "straddling": splits.index[splits > 1].tolist()}
