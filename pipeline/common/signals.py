"""A signal asks a long job to stop at its next safe moment; a second SIGINT does not wait.

Nor does a wait for another process: `patience` ends it when it takes too long, or soon after the signal.
"""

import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.common.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TICK_S = 1.0
GRACE_S = (
    10  # for what a job waits for when it is asked to stop, a batch say: then it can stop at a safe moment
)


class WaitedTooLong(Exception):
    """The patience with another process is over."""


class StoppedWaiting(Stopped):
    """A signal came while this process waited for another one, which did not answer; nothing was saved since."""

    def __init__(self, name: str) -> None:
        """name: of the signal."""
        super().__init__(
            f"stopped by {name} while waiting for another process; the same command resumes from the last checkpoint"
        )


class StopRequest:
    """Whether a signal has come, and which one."""

    name: str | None = None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Remember the first signal; a further SIGINT interrupts at once."""
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name


_requests: list[StopRequest] = []  # of the blocks in progress, the innermost last


@contextmanager
def deferred() -> Iterator[StopRequest]:
    """Signals only raise a flag while the block runs; the block looks at it when it is safe to stop."""
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in SIGNALS}
    _requests.append(request)
    try:
        yield request
    finally:
        _requests.remove(request)
        for number, handler in before.items():
            signal.signal(number, handler)


def requested() -> str | None:
    """The signal that came in the `deferred` block that is running; None without either."""
    return _requests[-1].name if _requests else None


@contextmanager
def patience(seconds: float, look: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Limit the time of a block that waits for other processes, wherever it blocks. For the main thread.

    A timer ticks every second. The seconds in which this process is suspended do not count: while it is, at most
    one tick comes.

    Args:
        look: called at each tick; what it raises ends the block.

    Raises:
        WaitedTooLong: the block takes longer.
        StoppedWaiting: `deferred` was asked to stop `GRACE_S` ago, and the block has waited for as long.
    """
    ticks, asked = itertools.count(1), itertools.count(1)

    def tick(_number: int, _frame: FrameType | None) -> None:
        look()
        if next(ticks) * TICK_S >= seconds:
            raise WaitedTooLong
        name = requested()
        if name is not None and next(asked) * TICK_S >= GRACE_S:
            raise StoppedWaiting(name)

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def raising() -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise `Stopped` wherever the block is; afterwards they do what they did before."""
    before = {number: signal.signal(number, raise_stopped) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_stopped(number: int, _frame: FrameType | None) -> None:
    """The handler for everything that is safe to stop anywhere, because its files appear whole."""
    raise Stopped(f"stopped by {signal.Signals(number).name}; the same command resumes")
