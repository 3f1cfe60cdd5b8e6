"""Which images each batch holds: a function of (seed, epoch), shared out over ranks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.common import seeding
from pipeline.distributed.process_group import Ranks

Item = tuple[int, int]  # (epoch, draw)


Rows = Sequence[int] | npt.NDArray[np.int64]


def epoch_order(rows: Rows, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Every row once, in an order of (seed, epoch)."""
    return seeding.generator("order", seed, epoch).permutation(np.asarray(rows, np.int64))


def balanced_order(
    rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """As many draws as rows, every class equally often, and within a class every image.

    How often two classes, or two images of a class, are drawn differs by one at most.

    Args:
        labels: int64, of the whole table.
    """
    random = seeding.generator("balanced order", seed, epoch)
    classes = random.permutation(np.unique(labels[rows]))
    draws = []
    for place, wanted in enumerate(np.array_split(np.arange(len(rows)), len(classes))):
        own = random.permutation(rows[labels[rows] == classes[place]])
        times, position = np.divmod(np.arange(len(wanted)), len(own))
        draws.append(own[position] + times * len(labels))
    return random.permutation(np.concatenate(draws))


def in_batches(order: npt.NDArray[np.int64], batch_size: int) -> list[npt.NDArray[np.int64]]:
    """ceil(n / batch_size) batches whose sizes differ by one at most.

    No image is dropped, and no small last batch disturbs batch norm or weighs its images more.
    """
    return np.array_split(order, steps_per_epoch(len(order), batch_size))


def in_order(rows: npt.NDArray[np.int64], batch_size: int) -> list[npt.NDArray[np.int64]]:
    """The rows as they come, in batches of `batch_size`: for looking, where no result depends on it."""
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Optimizer steps that an epoch takes: ceil(images / batch_size)."""
    return -(-images // batch_size)


def shard_batches(batches: Sequence[npt.NDArray[np.int64]], ranks: Ranks) -> list[npt.NDArray[np.int64]]:
    """Each batch's part for this rank: every `world`-th row, beginning at `rank`."""
    return [batch[ranks.rank :: ranks.world_size] for batch in batches]


def distribute_batches(
    batches: Sequence[npt.NDArray[np.int64]], ranks: Ranks
) -> tuple[list[npt.NDArray[np.int64]], list[int]]:
    """Whole batches for this rank, in turn, and how many images the ranks see in each round.

    For looking: a batch is the same whatever the number of ranks, and so is, to the bit, what a model says of it.
    All ranks have equally many; the last may be empty.
    """
    starts = range(0, len(batches), ranks.world_size)
    rounds = [batches[start : start + ranks.world_size] for start in starts]
    nothing = np.empty(0, np.int64)
    own = [round_[ranks.rank] if ranks.rank < len(round_) else nothing for round_ in rounds]
    return own, [sum(map(len, round_)) for round_ in rounds]
