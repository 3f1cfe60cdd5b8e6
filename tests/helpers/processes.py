"""Processes of our own program, forked from a server that has imported torch already, and ended at a chosen moment."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from pipeline.cli.main import run
from pipeline.common import signals
from pipeline.config.load import load_config
from pipeline.runs.log import LogRecord

WAIT_S = 120
MARK = "PLUMAGE_TEST_MARK"
CONTEXT = get_context("forkserver")


def start_server() -> None:
    """Start the process that all others are forked from: with the environment and the folder of this moment."""
    CONTEXT.set_forkserver_preload(
        [
            "pipeline.training.trainer",
            "pipeline.evaluation.evaluate",
            "pipeline.data.prepare_distributed",
            "tests.helpers.ranks",
        ]
    )
    forkserver.ensure_running()


class Dying:
    """A tracker that sends a signal to its own process at the first record of a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self._step, self._number = step, number

    def log(self, record: LogRecord) -> None:
        if record["step"] == self._step:
            os.kill(os.getpid(), self._number)

    def close(self) -> None:
        pass


def train(words: Sequence[str], environment: Mapping[str, str] = {}) -> int:
    """Train to the end in a process of its own; its exit code."""
    return _join(_start(_run, ["train", *words], environment))


def train_until(
    words: Sequence[str],
    step: int,
    number: signal.Signals,
    environment: Mapping[str, str] = {},
) -> int:
    """Train until a record of a step, then send the process a signal; its exit code, -9 for SIGKILL."""
    return _join(_start(_run_until, words, step, number, environment))


def at_once(*commands: Sequence[str]) -> list[int]:
    """Run verbs at the same time, each in a process of its own; their exit codes."""
    return [_join(process) for process in [_start(_run, command, {}) for command in commands]]


def interrupt(words: Sequence[str], when: Callable[[], bool], *numbers: signal.Signals) -> int:
    """Run a verb, send its process signals as soon as something holds; its exit code, -9 for SIGKILL."""
    process = _start(_run, words, {})
    deadline = time.monotonic() + WAIT_S
    while not when():
        assert process.is_alive(), "the process ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    for number in numbers:
        os.kill(process.pid or 0, number)
    return _join(process)


def mark_children(mark: str) -> None:
    """Let every program that this process starts from here on, and what those start, be found by `marked`."""
    os.environ[MARK] = mark


def marked(mark: str) -> set[int]:
    """The living processes with a mark in the environment that they were started with."""
    entry, found = f"{MARK}={mark}".encode(), set[int]()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is not ours
            if entry in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return found


def all_end(mark: str) -> bool:
    """Whether all marked processes end by themselves; those that do not are killed."""
    deadline = time.monotonic() + WAIT_S / 4
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return not left


def modules_of_training(words: Sequence[str], environment: Mapping[str, str] = {}) -> set[str]:
    """Those modules of ours, and torch, that are imported when a training has ended well."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    assert _join(_start(_report_modules, ["train", *words], environment, theirs)) == 0
    return set(ours.recv())


def _start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def _join(process: BaseProcess) -> int:
    process.join(WAIT_S)
    assert process.exitcode is not None, "the process has not ended"
    return process.exitcode


def _run(words: list[str], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    sys.exit(run(words))


def _report_modules(words: list[str], environment: Mapping[str, str], pipe: Connection) -> None:
    os.environ.update(environment)
    code = run(words)
    pipe.send([name for name in sys.modules if name == "torch" or name.startswith("pipeline.")])
    sys.exit(code)


def _run_until(words: list[str], step: int, number: signal.Signals, environment: Mapping[str, str]) -> None:
    from pipeline.common.errors import Stopped
    from pipeline.training.trainer import train

    os.environ.update(environment)
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, signals.raise_stopped)
    try:
        train(load_config(None, words), Dying(step, number))
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
