"""The images of a store in batches, and the loader that serves them to one rank.

The order of an epoch is a function of (seed, epoch), and a batch is a list of (epoch, draw): the
dataset keeps no state, so a loader can begin at any batch of any epoch, with any number of
processes, on any number of ranks, and gives the same images. `sampling` says what a draw is.
"""

import functools
import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import MP_STATUS_CHECK_INTERVAL  # seconds, of its thread that pins

from pipeline.common import hardware, signals
from pipeline.common.errors import DataError, UserError
from pipeline.common.signals import StoppedWaiting, WaitedTooLong
from pipeline.data import loader_processes, shared_memory
from pipeline.data.image_store import Store
from pipeline.data.prepare import Prepared
from pipeline.data.sampling import Item
from pipeline.data.transforms import Augmentation, CentreCrop
from pipeline.distributed.process_group import Ranks

View = Augmentation | CentreCrop
Empty = Callable[[Sequence[int], torch.dtype], Tensor]
"""an uninitialised tensor of a shape and a dtype"""
Answer = TypeVar("Answer")
WORKERS_AT_MOST = 8
BATCH_PATIENCE_S = 600.0
ENDS_SHOW_S = 1.0  # for the end of a process to be seen, when its connection is broken
KILLED_S = 5.0  # for killed loader processes to be gone: one may wait for a disk


class Batch(NamedTuple):
    """image: uint8 [B, 3, H, W], channels last in memory; label: int64 [B]; row: int64 [B], of the table."""

    image: Tensor
    label: Tensor
    row: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device.

        From pinned memory nothing waits for the copy but what computes with it: it goes on a stream of its own, while
        the GPU is still busy with the batch before. Torch keeps the pinned memory of a batch that is let go meanwhile.
        """
        if device.type != "cuda":
            return Batch(*(tensor.to(device) for tensor in self))
        computing, copying = torch.cuda.current_stream(device), _copying_stream(device)
        with torch.cuda.stream(copying):
            batch = Batch(*(tensor.to(device, non_blocking=True) for tensor in self))
        computing.wait_stream(copying)
        for tensor in batch:
            tensor.record_stream(computing)  # its memory is given to no other before that has used it
        return batch

    def split(self, parts: int) -> list["Batch"]:
        """Parts whose sizes differ by one at most."""
        return [Batch(*part) for part in zip(*(tensor.tensor_split(parts) for tensor in self), strict=True)]


@functools.cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Images(Dataset[Batch]):
    """Images of a store with their labels; indexed by lists of (epoch, draw)."""

    def __init__(self, store: Store, labels: npt.NDArray[np.int64], view: View) -> None:
        """labels: int64 [n], by row of the store."""
        self.store, self.labels, self.view = store, torch.from_numpy(labels), view

    def __getitems__(self, items: Sequence[Item]) -> Batch:
        """A batch whose image is still [B, H, W, 3]."""
        return self.batch(items, lambda shape, dtype: torch.empty(*shape, dtype=dtype))

    def batch(self, items: Sequence[Item], empty: Empty) -> Batch:
        """`__getitems__` in memory of a kind: each picture is copied once, to its final place."""
        rows = [draw % len(self.labels) for _, draw in items]
        side_px = self.view.image_px(items[0][0] if items else 0)
        image = empty((len(items), side_px, side_px, 3), torch.uint8)
        label, row = empty((len(items),), torch.int64), empty((len(items),), torch.int64)
        row.numpy()[:] = rows
        torch.index_select(self.labels, 0, row, out=label)
        pictures = image.numpy()
        for position, (epoch, draw) in enumerate(items):
            pictures[position] = self.view(self.store[rows[position]], epoch, draw)
        return Batch(image, label, row)


class _ImagesInProcess(Dataset[Batch | UserError]):
    """Images in a loader process, opened there for the first batch.

    A `UserError` is handed over as a value: DataLoader would make a traceback of it, or, where the images cannot be
    opened, lose it. The batch is made in shared memory: in the thread that sends it, an error would be printed and
    the batch awaited for ever.
    """

    def __init__(self, images: Images) -> None:
        self._pickled = pickle.dumps(images)

    @functools.cached_property
    def _images(self) -> Images:
        images: Images = pickle.loads(self._pickled)
        return images

    def __getitems__(self, items: Sequence[Item]) -> Batch | UserError:
        try:
            return self._images.batch(items, shared_memory.empty)
        except UserError as error:
            return error


class _BatchPlan(Sampler[list[Item]]):
    """The batches still to come on this rank; the loader sets them anew for each epoch."""

    def __init__(self) -> None:
        self.epoch = 0
        self.batches: Sequence[npt.NDArray[np.int64]] = []

    def __iter__(self) -> Iterator[list[Item]]:
        epoch = self.epoch  # of these batches, also where the loader has gone on to another one
        return ([(epoch, int(draw)) for draw in batch] for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Loader:
    """Serves batches of images to one rank."""

    def __init__(self, images: Images, workers: int, device: torch.device) -> None:
        """workers: processes; 0: this process makes each batch when it is asked for."""
        pins = device.type == "cuda"
        self._errors_of_pinning = loader_processes.keep_errors_of_pinning() if pins else {}
        self._plan, self._processes = _BatchPlan(), list[BaseProcess]()
        self._loader = DataLoader(
            _ImagesInProcess(images) if workers else images,
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_unchanged,
            pin_memory=pins,
            prefetch_factor=shared_memory.PREFETCHED if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context=loader_processes.server() if workers else None,
            worker_init_fn=loader_processes.initialise,
        )

    def batches(self, epoch: int, batches: Sequence[npt.NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield the batches of this rank.

        Args:
            batches: draws, an int64 array a batch.

        Raises:
            UserError: a batch cannot be made, a loader process was killed, or no batch comes.
            StoppedWaiting: a signal came, and no batch comes.
        """
        self._plan.epoch, self._plan.batches = epoch, batches
        iterator = self._await(self._start)
        while (served := self._await(lambda: next(iterator, None))) is not None:
            if isinstance(served, UserError):
                raise served
            image, label, row = served
            yield Batch(image.permute(0, 3, 1, 2), label, row)

    def _start(self) -> Iterator[Any]:
        loader_processes.kill_at_exit()
        before = set(multiprocessing.active_children())
        try:
            return iter(self._loader)
        except (OSError, EOFError) as error:  # EOFError: the server could not fork
            raise DataError(
                f"data.workers: loader processes cannot be started ({error or 'their server has ended'}); "
                "raise the limit that this names, or set data.workers=0"
            ) from error
        finally:
            self._processes += set(multiprocessing.active_children()) - before

    def _await(self, ask: Callable[[], Answer]) -> Answer:
        """What DataLoader answers; an error leaves no loader process behind."""
        if not self._loader.num_workers:
            return ask()
        try:
            return self._with_patience(ask)
        except BaseException:  # a signal's, too
            self._kill()
            raise

    def _with_patience(self, ask: Callable[[], Answer]) -> Answer:
        """By itself DataLoader would wait for its processes without end."""
        try:
            with signals.patience(BATCH_PATIENCE_S, self._raise_if_killed):
                return ask()
        except WaitedTooLong as error:
            raise DataError(
                f"no batch came in {BATCH_PATIENCE_S:g} s, and the loader processes live; see whether the disk of "
                "data.root answers; the same command resumes from the last checkpoint"
            ) from error
        except (RuntimeError, OSError, EOFError) as error:
            self._raise_if_killed(ENDS_SHOW_S)
            if (cause := self._errors_of_pinning.get(self._pinning_thread)) is not None:
                raise error from cause
            raise

    def _raise_if_killed(self, wait_s: float = 0) -> None:
        """Raise where loader processes were killed: DataLoader may wait for a lock that one of them held.

        wait_s: for an end to be seen. The end of a process is seen by its broken connection first.
        """
        ended = wait([process.sentinel for process in self._processes], wait_s)
        if ended and (name := signals.requested()) is not None:
            raise StoppedWaiting(name)
        for process in self._processes:
            if process.sentinel in ended and (process.exitcode or 0) < 0:
                raise loader_processes.killed(process)

    @property
    def _pinning_thread(self) -> threading.Thread | None:
        """DataLoader's thread that puts batches for a GPU into pinned memory."""
        return getattr(self._iterator, "_pin_memory_thread", None)

    @property
    def _iterator(self) -> Any:
        return getattr(self._loader, "_iterator", None)

    def _kill(self) -> None:
        """End processes that may not answer a request to end, and the thread that waits for them.

        DataLoader's own request would wait without end for a lock that a killed process held.
        """
        iterator, pinning = self._iterator, self._pinning_thread
        if iterator is not None and not iterator._shutdown:
            iterator._shutdown = True
            torch._C._remove_worker_pids(
                id(iterator)
            )  # torch's handler of SIGCHLD would take each for an error
            iterator._worker_pids_set = False
            for queue in iterator._index_queues:
                queue.cancel_join_thread()
                queue.close()
            if pinning is not None:
                iterator._pin_memory_thread_done_event.set()
        for process in self._processes:
            process.kill()
        deadline = time.monotonic() + KILLED_S
        if pinning is not None:
            pinning.join(MP_STATUS_CHECK_INTERVAL + KILLED_S)  # it looks whether to end once an interval
        for process in self._processes:
            process.join(max(0, deadline - time.monotonic()))


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


def _unchanged(batch: Any) -> Any:
    return batch
