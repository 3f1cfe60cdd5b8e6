"""The images of each batch: a function of (seed, epoch), distributed over ranks.

A draw is a row of the sample table; where an epoch shows an image more than once, the table's length is
added for each further showing, so that every showing is augmented in its own way.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.common import seeding

if TYPE_CHECKING:  # data are prepared without torch
    from pipeline.distributed.process_group import Ranks

Item = tuple[int, int]  # (epoch, draw)
Rows = Sequence[int] | npt.NDArray[np.int64]


def epoch_order(rows: Rows, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Every row once, in an order of (seed, epoch)."""
    return seeding.generator("order", seed, epoch).permutation(np.asarray(rows, np.int64))


def by_class(rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """The rows of each class that has some, by label, in their order; labels: int64, of these rows."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    yield from np.split(rows[order], starts)[1:]


def balanced_order(
    rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """As many draws as rows, every class equally often, and within a class every image.

    How often two classes, or two images of a class, are drawn differs by one at most.

    Args:
        labels: int64 [n], of the whole table.

    Returns:
        Draws, int64 [rows].
    """
    random = seeding.generator("balanced order", seed, epoch)
    rows_of = dict(zip(np.unique(labels[rows]).tolist(), by_class(rows, labels[rows]), strict=True))
    classes = random.permutation(np.array(list(rows_of)))
    draws = []
    counts = map(len, np.array_split(rows, len(classes)))
    for label, count in zip(classes, counts, strict=True):
        class_rows = random.permutation(rows_of[int(label)])
        showing, position = np.divmod(np.arange(count), len(class_rows))
        draws.append(class_rows[position] + showing * len(labels))
    return random.permutation(np.concatenate(draws))


def in_batches(order: npt.NDArray[np.int64], batch_size: int) -> list[npt.NDArray[np.int64]]:
    """ceil(n / batch_size) batches whose sizes differ by one at most.

    No image is dropped, and no small last batch disturbs batch norm or weighs its images more.
    """
    return np.array_split(order, steps_per_epoch(len(order), batch_size))


def in_order(rows: npt.NDArray[np.int64], batch_size: int) -> list[npt.NDArray[np.int64]]:
    """The rows as they come, in batches of `batch_size`: for evaluation, which no batch size changes."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Optimizer steps that an epoch takes: ceil(images / batch_size)."""
    return math.ceil(images / batch_size)


def shard_batches(batches: Sequence[npt.NDArray[np.int64]], ranks: "Ranks") -> list[npt.NDArray[np.int64]]:
    """Each batch's part for this rank: every `world`-th row, beginning at `rank`."""
    return [batch[ranks.rank :: ranks.world_size] for batch in batches]


def distribute_batches(
    batches: Sequence[npt.NDArray[np.int64]], ranks: "Ranks"
) -> tuple[list[npt.NDArray[np.int64]], list[int]]:
    """This rank's batches, dealt in turn, and the number of images that all ranks see in each round.

    For evaluation: batches stay whole, so that a model's output for each is the same, to the bit, on any number
    of ranks. All ranks have equally many batches; the last may be empty.
    """
    starts = range(0, len(batches), ranks.world_size)
    rounds = [batches[start : start + ranks.world_size] for start in starts]
    empty = np.empty(0, np.int64)
    dealt = [round_[ranks.rank] if ranks.rank < len(round_) else empty for round_ in rounds]
    return dealt, [sum(map(len, round_)) for round_ in rounds]
