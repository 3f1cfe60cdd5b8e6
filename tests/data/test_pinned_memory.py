"""Batches for a GPU pass through a thread that pins their memory; here its device is a stand-in."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.common import signals
from pipeline.common.errors import DataError, Stopped
from pipeline.data import loader
from pipeline.data.loader import Batch
from pipeline.data.sampling import in_batches
from pipeline.data.transforms import CentreCrop
from tests.helpers import tiny
from tests.helpers.loading import images_of

GPU, CPU = torch.device("cuda"), torch.device("cpu")
THREAD = "_pin_memory_loop"


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What DataLoader asks of a GPU; memory that is pinned is a copy."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: GPU)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)


def loader_of(birds: Path, device: torch.device = GPU) -> loader.Loader:
    return loader.Loader(images_of(birds, CentreCrop(tiny.config(birds).data)), 2, device)


def served(birds: Path, device: torch.device = GPU) -> Iterator[Batch]:
    return loader_of(birds, device).batches(0, in_batches(np.arange(60), 2))


def pinning_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if THREAD in thread.name]


def signal_loader_processes(number: signal.Signals) -> None:
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, number)


def test_pinned_batches_are_those_of_the_loader_processes(birds: Path) -> None:
    batches = list(served(birds))
    assert not any(tensor.is_shared() for batch in batches for tensor in batch)
    for batch, plain in zip(batches, served(birds, CPU), strict=True):
        assert plain.image.is_shared()
        assert batch.image.stride() == plain.image.stride()
        assert all(torch.equal(one, other) for one, other in zip(batch, plain, strict=True))


def test_a_killed_loader_process_is_named_by_its_signal(birds: Path) -> None:
    batches = served(birds)
    next(batches)
    signal_loader_processes(signal.SIGKILL)
    with pytest.raises(DataError, match="killed by signal 9 .*lower"):
        list(batches)
    assert not pinning_threads()


def test_a_killed_loader_process_is_named_though_it_held_a_lock_that_dataloader_waits_for(
    birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "TICK_S", 0.05)
    monkeypatch.setattr(loader, "BATCH_PATIENCE_S", 20.0)
    server = loader_of(birds)
    batches = server.batches(0, in_batches(np.arange(60), 2))
    next(batches)
    with server._iterator._workers_done_event._cond:  # as the killed process left it
        signal_loader_processes(signal.SIGKILL)
        with pytest.raises(DataError, match="killed by signal 9 .*lower"):
            list(batches)
    assert not any(process.is_alive() for process in server._processes)


def test_a_signal_ends_a_wait_for_a_batch_that_never_comes(
    birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "TICK_S", 0.05)
    monkeypatch.setattr(signals, "GRACE_S", 0.2)
    batches = served(birds)
    next(batches)
    signal_loader_processes(signal.SIGSTOP)
    with signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            list(batches)
    assert not pinning_threads()


def test_memory_that_cannot_be_pinned_is_an_error(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    with pytest.raises(RuntimeError, match=r"(?s)Original Traceback.*CUDA error: out of memory"):
        list(served(birds))
