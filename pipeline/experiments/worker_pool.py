"""Work side by side in processes: one a core, each with one thread, or one a GPU; each does one task after another.

A process does many tasks, because starting one (PyTorch, timm) takes longer than a small run. A run in a
process that has done others before gives the same numbers as one by itself.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from pipeline.common import console, signals
from pipeline.common.errors import Stopped, UserError
from pipeline.common.hardware import DEVICES

SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads
POLL_S = 0.2
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """How a task ended; `said`: the sentence of a failure, or the traceback of a bug."""

    status: Literal["done", "diverged", "failed", "lost", "bug"]
    """lost: its process is gone"""
    said: str = ""
    result: Any = None


class Task(Protocol):
    """What a worker does; it goes to the worker's process by pickle."""

    def do(self) -> Outcome:
        """Do it. A `UserError` is a failure, `Stopped` ends the worker, anything else is a bug."""


Job = TypeVar("Job", bound=Task)


class WorkerProcess(Generic[Job]):
    """A process that does one task after another."""

    task: Job | None = None

    def __init__(self, gpu: str | None = None) -> None:
        """gpu: what it sees of them, as `CUDA_VISIBLE_DEVICES` names it; None: what this process sees."""
        self.gpu = gpu
        self.connection, theirs = SPAWN.Pipe()
        # A daemon could not start loader processes; `_stop_with_parent` ends this one instead.
        self._process = SPAWN.Process(target=_work, args=(theirs, gpu))
        self._process.start()
        theirs.close()

    def give(self, task: Job) -> None:
        """Begin a task."""
        self.task = task
        self.connection.send(task)

    def take(self) -> tuple[Job, Outcome]:
        """The task that has ended, and how."""
        assert self.task is not None, "a worker without a task sends nothing"
        task, self.task = self.task, None
        try:
            return task, self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            return task, Outcome("lost", f"its process has ended with code {self._process.exitcode}")

    @property
    def alive(self) -> bool:
        """Whether it can take another task."""
        return self._process.is_alive()

    def stop(self) -> None:
        """Ask the task to save itself and to stop."""
        self._process.terminate()

    def end(self) -> None:
        """Wait for the end of the process.

        The connection is closed first: a task that was about to end may have taken the signal for its own, and
        would wait for the next task.
        """
        self.connection.close()
        self._process.join()


def run_tasks(
    coming: Callable[[], Job | None], jobs: int, gpus: Sequence[str] = ()
) -> Generator[tuple[Job, Outcome], None, None]:
    """Do tasks, `jobs` at once, and yield each as it ends; close it when not all of them are taken.

    Args:
        coming: the next task, asked for when a worker is free; None: none now, maybe when another has ended.
        jobs: workers at once.
        gpus: given to the workers in turn; none: all see what this process sees.

    Raises:
        Stopped: a signal came; the runs that were under way have saved themselves.
    """
    crew: list[WorkerProcess[Job]] = []
    with signals.deferred() as stop:
        try:
            while True:
                crew = [worker for worker in crew if worker.task or worker.alive]
                _hand_out(coming, crew, jobs, gpus)
                busy = {worker.connection: worker for worker in crew if worker.task}
                if not busy:
                    return
                for connection in wait(list(busy), POLL_S):
                    if stop.name is None:
                        yield busy[connection].take()  # type: ignore[index]
                if stop.name is not None:
                    raise Stopped(f"stopped by {stop.name}; the same command goes on")
        finally:
            for worker in crew:
                worker.stop()
            for worker in crew:
                worker.end()


def _hand_out(
    coming: Callable[[], Job | None], crew: list[WorkerProcess[Job]], jobs: int, gpus: Sequence[str]
) -> None:
    """Give tasks to the workers that have none, and start workers for tasks while there are too few."""
    idle = [worker for worker in crew if not worker.task]
    while idle or len(crew) < jobs:
        task = coming()
        if task is None:
            return
        if not idle:
            taken = [worker.gpu for worker in crew]
            idle = [WorkerProcess(min(gpus, key=taken.count) if gpus else None)]
            crew += idle
        idle.pop().give(task)


def redirect_output(log: Path) -> None:
    """From here on, what this process says goes to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 2)


def diverged(error: UserError) -> bool:
    """Whether a training ended because its loss was not a number."""
    from pipeline.training.epoch_meter import NotFinite

    return isinstance(error.__cause__, NotFinite)


def _work(connection: "Connection[Outcome, Task]", gpu: str | None) -> None:
    """Do what comes until nothing comes any more, or a signal."""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    if gpu is not None:
        os.environ[DEVICES] = gpu
    for number in signals.SIGNALS:
        signal.signal(number, signals.raise_stopped)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        while True:
            connection.send(_do(connection.recv()))
    except (Stopped, EOFError, ConnectionError):
        connection.close()


def _stop_with_parent() -> None:
    """A command that was killed must not leave runs behind, on which the next one would step."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _do(task: Task) -> Outcome:
    """Do a task in this process."""
    try:
        import torch

        torch.set_num_threads(1)
        return task.do()
    except UserError as error:
        console.fail(str(error))
        return Outcome("diverged" if diverged(error) else "failed", str(error))
    except Stopped as stopped:
        console.say(str(stopped))
        raise
    except Exception:
        traceback.print_exc()
        return Outcome("bug", traceback.format_exc())
