"""The loader processes of a rank: they end with it, and a wait for one that is gone or does not answer ends."""

import gc
import itertools
import multiprocessing
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.common import signals
from pipeline.common.errors import DataError, Stopped
from pipeline.data import image_store, loader, loader_processes, prepare
from pipeline.data.loader import Batch
from pipeline.data.sampling import in_batches
from pipeline.data.transforms import CentreCrop
from tests.helpers import processes, tiny
from tests.helpers.loading import images_of

CPU = torch.device("cpu")


def started(birds: Path, workers: int = 2) -> tuple[Iterator[Batch], list[BaseProcess]]:
    """A served epoch of batches of two images, of which one has come from each loader process; the processes."""
    server = loader.Loader(images_of(birds, CentreCrop(tiny.config(birds).data)), workers, CPU)
    served = server.batches(0, in_batches(np.arange(60), 2))
    first = [next(served) for _ in range(workers)]
    processes = multiprocessing.active_children()
    assert len(processes) == workers
    return itertools.chain(first, served), processes


def signal_all(processes: Iterable[BaseProcess], *numbers: signal.Signals) -> None:
    for process in processes:
        for number in numbers:
            os.kill(process.pid or 0, number)


def test_a_worker_ends_with_its_rank_and_not_by_a_signal_to_all_processes(birds: Path) -> None:
    batches, workers = started(birds)
    # From a process that is not the rank.
    pids = [str(worker.pid) for worker in workers]
    for name in ("-TERM", "-INT", "-USR1"):
        subprocess.run(["kill", name, *pids], check=True)
    assert torch.equal(torch.cat([batch.row for batch in batches]), torch.arange(60))
    for worker in workers:
        worker.terminate()
        worker.join(timeout=10)
        assert worker.exitcode == 0


def faults_of_a_later_picture() -> int:
    """Page faults of a large tensor that takes the place of others that are gone."""
    faults = 0
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(40 << 20, dtype=torch.uint8)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults


def test_a_loader_process_keeps_its_memory() -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=loader_processes.initialise, initargs=(0,)) as pool:
        assert pool.apply(faults_of_a_later_picture) < 1000  # 10,240 where it is mapped anew


def serve_and_die(birds: Path, mark: str) -> None:
    processes.mark_children(mark)
    _in_use = started(birds)
    if len(processes.marked(mark)) == 3:  # their server, and two of them
        os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_outlives_a_rank_that_is_killed(birds: Path) -> None:
    """Neither the loader processes nor their server."""
    mark = secrets.token_hex(8)
    rank = processes.CONTEXT.Process(target=serve_and_die, args=(birds, mark))
    rank.start()
    rank.join(processes.WAIT_S)
    assert rank.exitcode == -signal.SIGKILL
    assert processes.all_end(mark)


def serve_and_end(birds: Path, mark: str) -> None:
    """A rank that ends while its loader processes do not answer, as on a disk that hangs."""
    processes.mark_children(mark)
    _in_use, workers = started(birds)
    signal_all(workers, signal.SIGSTOP)
    leaked.append(_in_use)


leaked: list[object] = []  # as an exception that is kept holds what it passed


def test_a_rank_ends_whose_loader_processes_do_not_answer(birds: Path) -> None:
    mark = secrets.token_hex(8)
    rank = processes.CONTEXT.Process(target=serve_and_end, args=(birds, mark))
    rank.start()
    rank.join(processes.WAIT_S)
    assert rank.exitcode == 0
    assert processes.all_end(mark)


def test_a_killed_loader_process_is_named_by_its_signal(birds: Path) -> None:
    batches, workers = started(birds)
    signal_all(workers, signal.SIGKILL)
    with pytest.raises(DataError, match="killed by signal 9 .*lower"):
        list(batches)
    assert not [left for worker in workers for left in Path("/dev/shm").glob(f"torch_{worker.pid}_*")]


def serve_while_a_lock_is_lost(birds: Path) -> None:
    """A loader process is killed as it holds the lock by which torch asks the others to end."""
    server = loader.Loader(images_of(birds, CentreCrop(tiny.config(birds).data)), 2, CPU)
    batches = server.batches(0, in_batches(np.arange(60), 2))
    next(batches)
    iterator: Any = server._loader._iterator  # private: the moment is too short to be met from outside
    iterator._workers_done_event._cond.acquire()
    signal_all(multiprocessing.active_children(), signal.SIGKILL)
    loader.BATCH_PATIENCE_S = 2.0  # torch itself may wait for the lock first
    with pytest.raises(DataError, match=r"killed by signal 9|no batch came in 2 s"):
        list(batches)
    del batches, server, iterator
    gc.collect()


def test_the_lock_of_a_killed_loader_process_is_not_waited_for(birds: Path) -> None:
    rank = processes.CONTEXT.Process(target=serve_while_a_lock_is_lost, args=(birds,))
    rank.start()
    rank.join(60)
    ended = rank.exitcode
    rank.kill()
    assert ended == 0


def test_a_wait_for_a_batch_that_never_comes_ends(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "TICK_S", 0.05)
    batches, workers = started(birds)
    signal_all(workers, signal.SIGSTOP)  # as on a disk that does not answer
    monkeypatch.setattr(loader, "BATCH_PATIENCE_S", 0.5)
    with pytest.raises(DataError, match=r"no batch came in 0\.5 s"):
        list(batches)
    for worker in workers:
        worker.join(timeout=10)
        assert worker.exitcode == -signal.SIGKILL


def test_a_signal_ends_a_wait_for_a_batch_that_never_comes(
    birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "TICK_S", 0.05)
    monkeypatch.setattr(signals, "GRACE_S", 0.2)
    batches, workers = started(birds)
    signal_all(workers, signal.SIGSTOP)
    with signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            list(batches)


def test_a_signal_does_not_end_a_wait_for_a_batch_that_comes(birds: Path) -> None:
    batches, _ = started(birds)
    with signals.deferred() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(list(batches)) == 30
        assert stop.name == "SIGTERM"


def test_a_user_error_of_a_loader_process_keeps_its_sentence(birds: Path, tmp_path: Path) -> None:
    """The folder of the data goes before the loader processes open it."""
    folder = tmp_path / "store"
    shutil.copytree(prepare.load(tiny.config(birds)).store.folder, folder)
    images = images_of(birds, CentreCrop(tiny.config(birds).data))
    images.store = image_store.Store(folder)
    server = loader.Loader(images, 2, CPU)
    shutil.rmtree(folder)
    with pytest.raises(DataError) as raised:
        next(server.batches(0, [np.arange(4)]))
    assert str(raised.value) == f"{folder}: missing; run `plumage data` with the same --config and keys"


def test_a_bug_in_a_loader_process_keeps_its_traceback(birds: Path) -> None:
    images = images_of(birds, CentreCrop(tiny.config(birds).data))
    images.store = None  # type: ignore[assignment]
    server = loader.Loader(images, 1, CPU)
    with pytest.raises(TypeError, match="(?s)Original Traceback.*not subscriptable"):
        next(server.batches(0, [np.arange(4)]))


MACOS = """
import os, signal
for module, name in ((signal, "sigtimedwait"), (signal, "sigwaitinfo"), (os, "sched_getaffinity")):
    delattr(module, name)
del os.sysconf_names["SC_AVPHYS_PAGES"]
"""


@contextmanager
def training(tmp: Path, mark: str, step: int, *, macos: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A training in a process group of its own, with loader processes, that has logged a step.

    macos: all its processes lack what Python does not have there.
    """
    environment = {**os.environ, processes.MARK: mark}
    if macos:
        (tmp / "sitecustomize.py").write_text(MACOS)
        environment["PYTHONPATH"] = str(tmp)
    more = ("data.workers=2", "train.epochs=400", "tracking.log_every_steps=1")
    words = [sys.executable, "-m", "pipeline", *tiny.arguments("train", tmp, *more)]
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        deadline, is_there = time.monotonic() + processes.WAIT_S, tiny.log_reaches(tmp, step)
        while not is_there():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process


@pytest.mark.slow
def test_nothing_outlives_a_training_that_is_killed(birds: Path, tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    with training(tmp_path, mark, step=6) as process:  # both loaders have processes
        assert (
            len(processes.marked(mark)) == 1 + 2 + 2 * 2
        )  # with the server, and Python's tracker of resources
        process.kill()
        assert processes.all_end(mark)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "macos"),
    [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGUSR1, False), (signal.SIGTERM, True)],
)
def test_a_signal_to_all_processes_saves_and_ends_them(
    birds: Path, tmp_path: Path, number: signal.Signals, macos: bool
) -> None:
    """As terminals, `timeout`, torchrun and Slurm send it."""
    mark = secrets.token_hex(8)
    with training(tmp_path, mark, step=6, macos=macos) as process:
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=processes.WAIT_S)
    assert process.returncode == 75
    assert f"stopped by {number.name} at step" in said
    assert "Traceback" not in said
    assert processes.all_end(mark)
