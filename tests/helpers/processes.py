"""Processes that train and die at a chosen record: forked from one that has imported torch already."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection

from pipeline.cli.main import run
from pipeline.common import signals
from pipeline.config.load import load_config
from pipeline.runs.log import LogRecord

WAIT_S = 120


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
    return _join(_run, ["train", *words], environment)


def train_until(
    words: Sequence[str],
    step: int,
    number: signal.Signals,
    environment: Mapping[str, str] = {},
) -> int:
    """Train until a record of a step, then send the process a signal; its exit code, -9 for SIGKILL."""
    return _join(_run_until, words, step, number, environment)


def modules_of_training(words: Sequence[str], environment: Mapping[str, str] = {}) -> set[str]:
    """Those modules of ours, and torch, that are imported when a training has ended well."""
    ours, theirs = get_context("forkserver").Pipe(duplex=False)
    assert _join(_report_modules, ["train", *words], environment, theirs) == 0
    return set(ours.recv())


def _join(target: object, *arguments: object) -> int:
    context = get_context("forkserver")
    context.set_forkserver_preload(["pipeline.training.trainer"])
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(WAIT_S)
    assert process.exitcode is not None, "the process has not ended"
    return process.exitcode


def _run(words: list[str], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    os._exit(run(words))


def _report_modules(words: list[str], environment: Mapping[str, str], pipe: Connection) -> None:
    os.environ.update(environment)
    code = run(words)
    pipe.send([name for name in sys.modules if name == "torch" or name.startswith("pipeline.")])
    os._exit(code)


def _run_until(words: list[str], step: int, number: signal.Signals, environment: Mapping[str, str]) -> None:
    from pipeline.common.errors import Stopped
    from pipeline.training.trainer import train

    os.environ.update(environment)
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, signals.raise_stopped)
    try:
        train(load_config(None, words), Dying(step, number))
    except Stopped as stopped:
        os._exit(stopped.exit_code)
    os._exit(0)
