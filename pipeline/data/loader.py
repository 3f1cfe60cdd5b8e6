"""The images of a store in batches, and the loader that serves them to one rank.

The order of an epoch is a function of (seed, epoch), and a batch is a list of (epoch, draw): the
dataset keeps no state, so a loader can begin at any batch of any epoch, with any number of
processes, on any number of ranks, and gives the same images. `sampling` says what a draw is.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.common import hardware
from pipeline.data.image_store import Store
from pipeline.data.prepare import Prepared
from pipeline.data.sampling import Item
from pipeline.data.transforms import Augmentation, CentreCrop
from pipeline.distributed.process_group import Ranks

View = Augmentation | CentreCrop
WORKERS_AT_MOST = 8


class Batch(NamedTuple):
    """image: uint8 [B, 3, H, W], channels last in memory; label: int64 [B]; row: int64 [B], of the table."""

    image: Tensor
    label: Tensor
    row: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory the copy does not wait."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def split(self, parts: int) -> list["Batch"]:
        """Parts whose sizes differ by one at most."""
        return [Batch(*part) for part in zip(*(tensor.tensor_split(parts) for tensor in self), strict=True)]


class Images(Dataset[Batch]):
    """Images of a store with their labels; indexed by lists of (epoch, draw)."""

    def __init__(self, store: Store, labels: npt.NDArray[np.int64], view: View) -> None:
        """labels: int64 [n], by row of the store."""
        self.store, self.labels, self.view = store, torch.from_numpy(labels), view

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        """A batch whose image is still [B, H, W, 3]: each picture is copied once, to its final memory."""
        rows = torch.tensor([draw % len(self.labels) for _, draw in items], dtype=torch.int64)
        side_px = self.view.image_px(items[0][0] if items else 0)
        image = torch.empty((len(items), side_px, side_px, 3), dtype=torch.uint8)
        pictures = image.numpy()
        for position, ((epoch, draw), row) in enumerate(zip(items, rows.tolist(), strict=True)):
            pictures[position] = self.view(self.store[row], epoch, draw)
        return Batch(image, self.labels[rows], rows)


class _BatchPlan(Sampler[list[Item]]):
    """The batches still to come on this rank; the loader sets them anew for each epoch."""

    def __init__(self) -> None:
        self.batches: list[list[Item]] = []

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Loader:
    """Serves batches of images to one rank."""

    def __init__(self, images: Images, workers: int, device: torch.device) -> None:
        """workers: processes; 0: this process makes each batch when it is asked for."""
        self._plan = _BatchPlan()
        self._loader = DataLoader(
            images,
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            multiprocessing_context=_forkserver() if workers else None,
            worker_init_fn=_init_worker,
        )

    def batches(self, epoch: int, batches: Sequence[npt.NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield the batches of this rank.

        Args:
            batches: draws, an int64 array a batch.
        """
        self._plan.batches = [[(epoch, int(draw)) for draw in batch] for batch in batches]
        for image, label, row in self._loader:
            yield Batch(image.permute(0, 3, 1, 2), label, row)


def build_loader(data: Prepared, view: View, workers: int | None, ranks: Ranks) -> Loader:
    """The loader of one rank over all rows of a data set, each seen through a view.

    Args:
        workers: loader processes of this rank; None: by the cores.
    """
    return Loader(Images(data.store, data.labels, view), worker_count(workers, ranks), ranks.device)


def worker_count(setting: int | None, ranks: Ranks) -> int:
    """Loader processes a rank: `data.workers`, or by the cores. None on the CPU, where the model needs all cores."""
    if setting is not None:
        return setting
    if ranks.device.type == "cpu":
        return 0
    return min(WORKERS_AT_MOST, max(1, hardware.cores() // ranks.local_world_size))


def _forkserver() -> BaseContext:
    """The process that loader processes are forked from: it has one thread, and has imported what they need.

    This process has several threads (of NCCL, of autograd, of `Heartbeat`), and the child of a fork inherits
    the locks that they hold. Signals that come to all processes at once must not end the server, so it is
    started with SIGTERM blocked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.data.loader"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _unchanged(batch: Any) -> Any:
    return batch


def _init_worker(worker: int) -> None:  # noqa: ARG001
    """Compute in one thread, and exit on the rank's SIGTERM alone: torchrun and Slurm send one to all processes."""
    cv2.setNumThreads(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_when_the_rank_says_so, daemon=True).start()


def _exit_when_the_rank_says_so() -> None:
    rank = multiprocessing.parent_process()
    while rank is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != rank.pid:
        pass
    os._exit(0)
