"""Tasks side by side in processes: one a core, with one thread each, or one a GPU, with its part of the cores.

A process runs many tasks, because starting one (PyTorch, timm) takes longer than a small run. A run gives the
same numbers in a process of its own and in one that has run others before.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from pipeline.common import console, hardware, signals
from pipeline.common.errors import ConfigError, Diverged, Stopped, UserError, refusals_as_sentences
from pipeline.common.hardware import DEVICES, SHARING
from pipeline.config.schema import Config

SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads
POLL_S = 0.2
SHUTDOWN_S = 300.0  # for the step in progress and the checkpoint
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    status: Literal["done", "diverged", "failed", "lost", "bug"]
    """lost: its process died"""
    message: str = ""
    """the sentence of a failure, or the traceback of a bug"""
    result: Any = None


@dataclass(frozen=True)
class Places:
    """jobs: tasks at once; gpus: given to their workers in turn, each by its value of `CUDA_VISIBLE_DEVICES`."""

    jobs: int
    gpus: list[str]


def places(asked: int | None, configs: Iterable[Config]) -> Places:
    """Where the runs of these configurations are done; a job a GPU, or where there is none a core, if none is asked for.

    Raises:
        ConfigError: fewer than one job is asked for.
    """
    if asked is not None and asked < 1:
        raise ConfigError(f"--jobs {asked}: has to be at least 1")
    gpus = hardware.gpus() if any(config.train.device != "cpu" for config in configs) else []
    return Places(asked or len(gpus) or hardware.cores(), gpus)


class Task(Protocol):
    """A piece of work for a worker process, sent there by pickle."""

    def run(self) -> Outcome:
        """Run it. A `UserError` is a failure, `Stopped` ends the worker, any other exception is a bug."""


AnyTask = TypeVar("AnyTask", bound=Task)


class WorkerProcess(Generic[AnyTask]):
    """A process that runs one task after another."""

    task: AnyTask | None = None

    def __init__(self, gpu: str | None = None, sharing: int = 1) -> None:
        """Start it.

        Args:
            gpu: its value of `CUDA_VISIBLE_DEVICES`; None: that of this process.
            sharing: workers with GPUs that share the cores, for their threads and loader processes.
        """
        self.gpu = gpu
        self.connection, worker_end = SPAWN.Pipe()
        # A daemon could not start loader processes; `_stop_with_parent` ends this one instead.
        self._process = SPAWN.Process(target=_work, args=(worker_end, gpu, sharing))
        self._process.start()
        worker_end.close()

    def start(self, task: AnyTask) -> None:
        """Start a task; if the process has just died, `collect` says so."""
        self.task = task
        with contextlib.suppress(ConnectionError):
            self.connection.send(task)

    def collect(self) -> tuple[AnyTask, Outcome]:
        """The task that has ended, and how."""
        assert self.task is not None, "a worker without a task sends nothing"
        task, self.task = self.task, None
        try:
            return task, self.connection.recv()
        except (EOFError, ConnectionError):
            self._end()
            return task, Outcome("lost", f"its process ended with code {self._process.exitcode}")

    @property
    def is_alive(self) -> bool:
        """Whether it can run another task."""
        return self._process.is_alive()

    def request_stop(self) -> None:
        """Ask the task to save its state and stop."""
        self._process.terminate()

    def join(self) -> None:
        """Wait for the end of the process.

        The connection is closed first: a task that ends just now may have taken the signal for its own, and its
        worker would wait for the next task.
        """
        self.connection.close()
        self._end()

    def _end(self) -> None:
        """Wait for the end of the process; kill it when that takes longer than any step and checkpoint."""
        self._process.join(SHUTDOWN_S)
        self._process.kill()  # does nothing to a process that has ended
        self._process.join()


def run_tasks(
    next_task: Callable[[], AnyTask | None], places: Places
) -> Generator[tuple[AnyTask, Outcome], None, None]:
    """Run tasks side by side, and yield each as it ends. Close the generator when you stop taking from it.

    Args:
        next_task: called when a worker is free; None: no task now, but maybe when another has ended.
        places: without GPUs all see what this process sees.

    Raises:
        Stopped: a signal came; the running tasks have saved their state.
    """
    workers: list[WorkerProcess[AnyTask]] = []
    with signals.deferred() as stop:
        try:
            while True:
                workers = [worker for worker in workers if worker.task or worker.is_alive]
                assign_tasks(next_task, workers, places)
                busy = {worker.connection: worker for worker in workers if worker.task}
                if not busy:
                    return
                for connection in wait(list(busy), POLL_S):
                    if stop.name is None:
                        yield busy[connection].collect()  # type: ignore[index]
                if stop.name is not None:
                    raise Stopped(f"stopped by {stop.name}; the same command resumes")
        finally:
            for worker in workers:
                worker.request_stop()
            for worker in workers:
                worker.join()


def assign_tasks(
    next_task: Callable[[], AnyTask | None],
    workers: list[WorkerProcess[AnyTask]],
    places: Places,
) -> None:
    """Start tasks on idle workers; add workers to the list while tasks come and there are fewer than `places.jobs`."""
    idle = [worker for worker in workers if not worker.task]
    while idle or len(workers) < places.jobs:
        task = next_task()
        if task is None:
            return
        if not idle:
            used = [worker.gpu for worker in workers]
            gpu = min(places.gpus, key=used.count, default=None)
            idle = [WorkerProcess(gpu, sharing=places.jobs if places.gpus else 1)]
            workers += idle
        idle.pop().start(task)


def redirect_output(log: Path) -> None:
    """Append what this process writes to standard error to a file, from here on."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 2)


def _work(connection: "Connection[Outcome, Task]", gpu: str | None, sharing: int) -> None:
    """Run tasks until the connection is closed, or a signal comes."""
    os.environ[SHARING] = str(sharing)
    threads = 1 if gpu is None else hardware.cores()
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    if gpu is not None:
        os.environ[DEVICES] = gpu
    for number in signals.SIGNALS:
        signal.signal(number, signals.raise_stopped)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        while True:
            connection.send(_run(connection.recv(), threads))
    except (Stopped, EOFError, ConnectionError):
        connection.close()


def _stop_with_parent() -> None:
    """End this process with its parent: runs that a killed command left behind would disturb the next one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _run(task: Task, threads: int) -> Outcome:
    """Run a task in this process; what it computes on the CPU, in that many threads."""
    try:
        import torch

        torch.set_num_threads(threads)
        with refusals_as_sentences():
            return task.run()
    except UserError as error:
        console.fail(str(error))
        return Outcome("diverged" if isinstance(error, Diverged) else "failed", str(error))
    except Stopped as stopped:
        console.say(str(stopped))
        raise
    except Exception:
        traceback.print_exc()
        return Outcome("bug", traceback.format_exc())
