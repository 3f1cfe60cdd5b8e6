"""The processes and the thread that stand behind a `Loader`: how they begin, and that they end with their rank."""

import functools
import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, util
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

import cv2

from pipeline.common import hardware, signals
from pipeline.common.errors import DataError

LIFE_CHECK_S = 1.0  # between two looks of a loader process at its rank


class _PinningErrors:
    """A `threading.excepthook` that keeps what ends a pinning thread, such as a loader process that is gone.

    By itself the thread prints a traceback; the loader raises an error of its own, with this one as the cause.
    """

    def __init__(self) -> None:
        self._others, self.errors = (
            threading.excepthook,
            dict[threading.Thread | None, BaseException | None](),
        )

    def __call__(self, ended: threading.ExceptHookArgs) -> None:
        if ended.thread is not None and "pin_memory" in ended.thread.name:
            self.errors[ended.thread] = ended.exc_value
        else:
            self._others(ended)


def keep_errors_of_pinning() -> dict[threading.Thread | None, BaseException | None]:
    """What has ended pinning threads, from here on, by thread."""
    if not isinstance(threading.excepthook, _PinningErrors):
        threading.excepthook = _PinningErrors()
    return threading.excepthook.errors


@functools.cache
def kill_at_exit() -> None:
    """Let no loader process be left when this process ends: multiprocessing would wait for one that does not answer."""
    util.Finalize(None, _kill_left, exitpriority=0)  # before it waits


def _kill_left() -> None:
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def killed(process: BaseProcess) -> DataError:
    """The sentence for a loader process that a signal has ended."""
    number = -(process.exitcode or 0)
    return DataError(
        f"a loader process was killed by signal {number} ({signal.strsignal(number)}); dmesg says whether memory ran "
        "out: then set data.workers lower; the same command resumes from the last checkpoint"
    )


def server() -> BaseContext:
    """The process that loader processes are forked from: it has one thread, and has imported what they need.

    This process has several threads (of NCCL, of autograd, of `Heartbeat`), and the child of a fork inherits
    the locks that they hold. Signals that come to all processes at once must not end the server, so it is
    started with them blocked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.data.loader"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def initialise(worker: int) -> None:  # noqa: ARG001
    """Compute in one thread, in memory that is kept; leave signals to the rank: torchrun, Slurm and terminals send them
    to all processes.
    """
    cv2.setNumThreads(0)
    hardware.keep_freed_memory()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    if not hasattr(signal, "sigtimedwait"):  # macOS: who has sent a SIGTERM is not known
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_rank, daemon=True).start()


def _end_with_rank() -> None:
    """End this process when the rank sends it a SIGTERM, or is gone: DataLoader would look at the server alone."""
    rank = multiprocessing.parent_process()
    assert rank is not None, "a loader process has a rank"
    if hasattr(signal, "sigtimedwait"):
        while rank.is_alive():
            sent = signal.sigtimedwait({signal.SIGTERM}, LIFE_CHECK_S)
            if sent is not None and sent.si_pid == rank.pid:
                break
    else:
        rank.join()
    os._exit(0)
