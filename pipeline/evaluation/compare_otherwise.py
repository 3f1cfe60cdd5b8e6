"""Compared runs, judged otherwise than by the official labels: by label sets, at a rank, by the height of mistakes."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.data import taxonomy
from pipeline.data.taxonomy import Taxonomy
from pipeline.evaluation import label_sets, mistake_severity, statistics
from pipeline.runs.directory import RunDirectory

Floats = npt.NDArray[np.float64]


class Measure(NamedTuple):
    """A number of each image, of which a mean is taken: float64 [n], NaN where an image does not count."""

    name: str
    of: Callable[[pd.DataFrame], Floats]
    """of a predictions table, sorted by image id"""


def measures(runs: Sequence[RunDirectory], split: str, class_names: Sequence[str]) -> list[Measure]:
    """What all of the runs have: label sets of the same name and content, and the hierarchy, where it is the same.

    Raises:
        DataError: a stored label set or hierarchy is damaged.
    """
    return [*_by_labels(runs, split), *_in_hierarchy(runs, class_names)]


def _by_labels(runs: Sequence[RunDirectory], split: str) -> Iterator[Measure]:
    first, *rest = [label_sets.read(run.evaluation(split)) for run in runs]
    for name, changed in first.items():
        if all(name in sets and changed.equals(sets[name]) for sets in rest):
            yield Measure(f"top-1 by the labels of {name}", partial(_right, changed))


def _right(changed: pd.DataFrame, table: pd.DataFrame) -> Floats:
    scored = label_sets.relabelled(table, changed)
    right = (scored["label"] == scored["predicted"]).astype(np.float64)
    return np.asarray(right.reindex(table.index), np.float64)


def _in_hierarchy(runs: Sequence[RunDirectory], class_names: Sequence[str]) -> Iterator[Measure]:
    kept = [
        taxonomy.read(run.taxonomy_file, class_names) if run.taxonomy_file.is_file() else None for run in runs
    ]
    tree = kept[0]
    if tree is None or any(other != tree for other in kept):
        return
    for above, rank in enumerate(tree.ranks, start=1):
        yield Measure(f"right {rank}", partial(_within, tree, above))
    yield Measure("distance in the hierarchy (0 is best)", partial(_heights, tree))


def _heights(tree: Taxonomy, table: pd.DataFrame) -> Floats:
    return mistake_severity.heights(table, tree).astype(np.float64)


def _within(tree: Taxonomy, height: int, table: pd.DataFrame) -> Floats:
    return np.asarray(_heights(tree, table) <= height, np.float64)


def interval_over(runs_a: int, runs_b: int) -> str:
    """What an interval of the difference of two groups is over, by their numbers of runs."""
    if max(runs_a, runs_b) == 1:
        return "images"
    return "seeds and images" if min(runs_a, runs_b) > 1 else "images and the seeds of one side"


def compare(
    measure: Measure,
    a: tuple[str, Sequence[pd.DataFrame]],
    b: tuple[str, Sequence[pd.DataFrame]],
    *,
    paired: bool,
) -> dict[str, Any]:
    """Means of two groups and their difference with its 95 % interval, in plain types.

    low, high: by the paired bootstrap over images for one run of each, else over seeds and images together (see
    `statistics.difference_over_seeds`); None where nothing varies.

    Args:
        a, b: the name of a group and the predictions tables of its runs, sorted by image id.
        paired: whether the runs of both have the same seeds, in the same order.
    """
    (name_a, runs_a), (name_b, runs_b) = a, b
    values_a, values_b = (np.stack([measure.of(table) for table in runs]) for runs in (runs_a, runs_b))
    counted = ~np.isnan(np.vstack([values_a, values_b])).any(axis=0)
    values_a, values_b = values_a[:, counted], values_b[:, counted]
    difference, interval = _difference(values_a, values_b, paired)
    low, high = (None, None) if interval is None else interval
    return {
        "measure": measure.name,
        "a": name_a,
        "b": name_b,
        "n": int(counted.sum()),
        "mean_a": float(values_a.mean()),
        "mean_b": float(values_b.mean()),
        "difference": difference,
        "interval_over": interval_over(len(runs_a), len(runs_b)),
        "low": low,
        "high": high,
    }


def _difference(a: Floats, b: Floats, paired: bool) -> tuple[float, tuple[float, float] | None]:
    """Of values [S, n], with its interval."""
    if max(len(a), len(b)) > 1:
        both = statistics.difference_over_seeds(a, b, paired=paired)
        return both.value, both.interval
    difference, low, high = statistics.difference(a[0], b[0])
    return difference, (low, high) if statistics.difference_varies(a[0], b[0]) else None
