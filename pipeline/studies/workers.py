"""Runs side by side: one process a core, each with one thread, as long as there are runs to do.

A process does many runs, because starting one (PyTorch, timm) takes longer than a small run. A run in a
process that has done others before gives the same numbers as one by itself.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal

from pipeline import files, signals, terminal
from pipeline.config import Config
from pipeline.errors import Stopped, UserError

SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit PyTorch's threads
POLL_S = 0.2
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """A run to be trained and, with `test`, evaluated."""

    config: Config
    test: bool

    @property
    def log(self) -> Path:
        """What the run says."""
        return self.config.run_dir / "output.log"


@dataclass(frozen=True)
class Outcome:
    """How a task ended; `said`: the sentence of a failure, or the traceback of a bug."""

    status: Literal["done", "diverged", "failed", "bug"]
    said: str = ""


class Worker:
    """A process that does one task after another."""

    task: Task | None = None

    def __init__(self) -> None:
        self.connection, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        """Begin a task."""
        self.task = task
        self.connection.send(task)

    def take(self) -> tuple[Task, Outcome]:
        """The task that has ended, and how."""
        assert self.task is not None, "a worker without a task sends nothing"
        task, self.task = self.task, None
        try:
            return task, self.connection.recv()
        except EOFError:
            self._process.join()
            return task, Outcome("failed", f"its process has ended with code {self._process.exitcode}")

    @property
    def alive(self) -> bool:
        """Whether it can take another task."""
        return self._process.is_alive()

    def stop(self) -> None:
        """Ask the run to save itself and to stop."""
        self._process.terminate()

    def end(self) -> None:
        """Wait for the end of the process.

        The connection is closed first: a run that was about to end may have taken the signal for its own, and
        would wait for the next task.
        """
        self.connection.close()
        self._process.join()


def each(tasks: Sequence[Task], jobs: int) -> Generator[tuple[Task, Outcome], None, None]:
    """Do the tasks, `jobs` at once, and yield each as it ends; close it when not all of them are taken.

    Raises:
        Stopped: a signal came; the runs that were under way have saved themselves.
    """
    waiting = deque(tasks)
    crew: list[Worker] = []
    with signals.deferred() as stop:
        try:
            while waiting or any(worker.task for worker in crew):
                crew = [worker for worker in crew if worker.task or worker.alive]
                crew += [Worker() for _ in range(min(jobs - len(crew), len(waiting)))]
                for worker in crew:
                    if waiting and not worker.task:
                        worker.give(waiting.popleft())
                busy = {worker.connection: worker for worker in crew if worker.task}
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


def _work(connection: "Connection[Outcome, Task]") -> None:
    """Do what comes until nothing comes any more, or a signal."""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signals.raise_stopped)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        while True:
            connection.send(_do(connection.recv()))
    except (Stopped, EOFError, ConnectionError):
        connection.close()


def _stop_with_parent() -> None:
    """A study that was killed must not leave runs behind, on which the next one would step."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _do(task: Task) -> Outcome:
    """Train and evaluate in this process; what is said goes to the run's log."""
    task.config.run_dir.mkdir(parents=True, exist_ok=True)
    with task.log.open("a") as log:
        os.dup2(log.fileno(), 2)
    try:
        import torch

        from pipeline.meter import NotFinite
        from pipeline.train import train

        torch.set_num_threads(1)
        try:
            train(task.config)
        except UserError as error:
            if isinstance(error.__cause__, NotFinite):
                return Outcome("diverged", str(error))
            raise
        if task.test:
            _evaluate_once(task.config)
    except UserError as error:
        terminal.fail(str(error))
        return Outcome("failed", str(error))
    except Stopped as stopped:
        terminal.say(str(stopped))
        raise
    except Exception:
        traceback.print_exc()
        return Outcome("bug", traceback.format_exc())
    return Outcome("done")


def _evaluate_once(config: Config) -> None:
    """Read the test split, unless this very checkpoint has been evaluated."""
    from pipeline import stored
    from pipeline.evaluate import evaluate

    folder = stored.folder_of(config.run_dir, "test")
    best = files.digest_of_file(config.checkpoints_dir / "best.pt")
    if not (folder / "metrics.json").is_file() or stored.read_metrics(folder)["checkpoint_sha256"] != best:
        evaluate(config)
