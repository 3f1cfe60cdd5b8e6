"""The order of an epoch, its batches, and each rank's part of them."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pipeline.data.sampling import balanced_order, by_class, epoch_order, in_batches, shard_batches
from pipeline.distributed.process_group import Ranks

CPU = torch.device("cpu")


def epoch_batches(rows: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    return in_batches(epoch_order(rows, seed, epoch), batch_size)


@pytest.mark.parametrize(("n", "batch_size"), [(60, 8), (64, 8), (7, 8), (65, 64), (1, 1)])
def test_an_epoch_sees_every_row_once_in_batches_of_equal_size(n: int, batch_size: int) -> None:
    rows = [3 * row + 1 for row in range(n)]
    batches = epoch_batches(rows, batch_size, seed=1, epoch=4)
    sizes = {len(batch) for batch in batches}
    assert sorted(np.concatenate(batches)) == rows
    assert len(batches) == -(-n // batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(row) for row in np.concatenate(epoch_batches(range(100), 7, seed, epoch))]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_every_batch_without_overlap(world: int) -> None:
    batches = epoch_batches(range(50), 8, 0, 0)
    shares = [shard_batches(batches, Ranks(rank, world, world, CPU)) for rank in range(world)]
    for number, batch in enumerate(batches):
        assert sorted(np.concatenate([shares[rank][number] for rank in range(world)])) == sorted(batch)


def test_a_balanced_epoch_shows_every_class_equally_often_and_each_showing_in_its_own_way() -> None:
    labels = np.array([9, 9] + [0] * 40 + [1] * 8 + [2] * 2)  # the first two rows are not of this split
    rows = np.arange(2, 52)
    order = balanced_order(rows, labels, seed=0, epoch=0)
    assert len(order) == len(rows)
    assert len(set(order)) == len(order)  # a draw is never repeated: a row's second showing is another draw
    showings = np.bincount(labels[order % len(labels)], minlength=3)
    assert sorted(showings[:3]) == [16, 17, 17]
    of_rare = np.bincount(order % len(labels), minlength=52)[50:52]
    assert abs(int(of_rare[0]) - int(of_rare[1])) <= 1
    assert not np.array_equal(order, balanced_order(rows, labels, 0, 1))


def test_the_rows_of_a_class_stay_in_their_order() -> None:
    labels = np.array([4, 1, 4, 0, 1, 4])
    found = [rows.tolist() for rows in by_class(np.array([2, 3, 5, 7, 11, 13]), labels)]
    assert found == [[7], [3, 11], [2, 5, 13]]
    assert list(by_class(labels[:0], labels[:0])) == []
