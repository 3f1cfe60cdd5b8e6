"""Worker processes: GPUs, and their end."""

import errno
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.common import hardware
from pipeline.common.errors import REFUSALS, ConfigError, DataError, Diverged
from pipeline.experiments import worker_pool
from pipeline.experiments.worker_pool import Places
from tests.helpers import tiny


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoProcess:
        def __init__(self, gpu: str | None = None, sharing: int = 1) -> None:
            self.gpu, self.sharing, self.task = gpu, sharing, None

        def start(self, task: Any) -> None:
            self.task = task

    monkeypatch.setattr(worker_pool, "WorkerProcess", NoProcess)
    for gpus, expected in ((["0", "GPU-5"], ["0", "GPU-5", "0"]), ([], [None] * 3)):
        workers: list[Any] = []
        worker_pool.assign_tasks(lambda: "a task", workers, Places(3, gpus))  # type: ignore[arg-type,return-value]
        assert [worker.gpu for worker in workers] == expected
        assert {worker.sharing for worker in workers} == {3 if gpus else 1}


def test_gpus_are_those_that_cuda_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for visible, expected in (("0, GPU-5", ["0", "GPU-5"]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert hardware.gpus() == expected


def test_gpus_that_torch_cannot_use_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a driver that is too old: NVML still counts them."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for visible in (None, "0,1"):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert hardware.gpus() == []


def test_one_run_at_a_time_on_each_gpu_and_on_each_core_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 16)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    on_cpu = tiny.config(tmp_path, "train.device=cpu")
    free = tiny.config(tmp_path, "train.device=auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert worker_pool.places(None, [free, free]) == Places(2, ["0", "2"])
    assert worker_pool.places(5, [free]) == Places(5, ["0", "2"])
    assert worker_pool.places(None, [on_cpu]) == Places(16, [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert worker_pool.places(None, [free]) == Places(16, [])
    with pytest.raises(ConfigError, match="--jobs 0: has to be at least 1"):
        worker_pool.places(0, [free])


class CountCores:
    def run(self) -> worker_pool.Outcome:
        return worker_pool.Outcome("done", result=hardware.cores())


def test_a_worker_with_a_gpu_has_its_part_of_the_cores() -> None:
    tasks = iter([CountCores()])
    ((_, outcome),) = worker_pool.run_tasks(lambda: next(tasks, None), Places(2, ["0"]))
    assert outcome.result == max(1, hardware.cores() // 2)


class CountThreads:
    def run(self) -> worker_pool.Outcome:
        import torch

        told = {os.environ[name] for name in worker_pool.THREADS}
        return worker_pool.Outcome("done", result=(torch.get_num_threads(), told))


@pytest.mark.parametrize(("gpu", "sharing"), [("0", 1), ("0", 2), (None, 1)])
def test_a_worker_with_a_gpu_computes_on_the_cpu_in_its_part_of_the_cores(
    gpu: str | None, sharing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    threads = 1 if gpu is None else max(1, hardware.cores() // sharing)
    worker: worker_pool.WorkerProcess[Any] = worker_pool.WorkerProcess(gpu, sharing)
    worker.start(CountThreads())
    _, outcome = worker.collect()
    assert joins(worker)
    assert outcome.result == (threads, {str(threads)})


def joins(worker: worker_pool.WorkerProcess[Any]) -> bool:
    ending = threading.Thread(target=worker.join, daemon=True)
    ending.start()
    ending.join(60)
    return not ending.is_alive()


def test_a_worker_that_missed_the_signal_ends_all_the_same() -> None:
    assert joins(worker_pool.WorkerProcess())


def test_a_worker_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "SHUTDOWN_S", 0.2)
    worker = worker_pool.WorkerProcess()
    (process,) = multiprocessing.active_children()
    os.kill(process.pid or 0, signal.SIGSTOP)
    worker.request_stop()
    assert joins(worker)
    assert not process.is_alive()


def test_a_process_that_has_just_died_is_lost_not_a_bug() -> None:
    worker: worker_pool.WorkerProcess[Any] = worker_pool.WorkerProcess()
    (process,) = multiprocessing.active_children()
    process.kill()
    process.join()
    worker.start(CountCores())
    assert worker.collect()[1].status == "lost"


@dataclass(frozen=True)
class Raise:
    """A task that raises."""

    error: Exception

    def run(self) -> worker_pool.Outcome:
        raise self.error


def test_an_exception_is_the_outcome_of_its_kind() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "last.pt")
    errors = [Diverged("the loss is nan"), DataError("no such file"), full, KeyError("a bug")]
    tasks = iter(map(Raise, errors))
    outcomes = [outcome for _, outcome in worker_pool.run_tasks(lambda: next(tasks, None), Places(1, []))]
    assert [outcome.status for outcome in outcomes] == ["diverged", "failed", "failed", "bug"]
    assert [outcome.message for outcome in outcomes[:2]] == ["the loss is nan", "no such file"]
    assert outcomes[2].message == f"last.pt: {REFUSALS[errno.ENOSPC]}"
    assert outcomes[3].message.endswith("KeyError: 'a bug'\n")
