"""A signal asks a long job to stop at its next safe moment; a second SIGINT does not wait."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.common.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether a signal has come, and which one."""

    name: str | None = None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Remember the first signal; a further SIGINT interrupts at once."""
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name


@contextmanager
def deferred() -> Iterator[StopRequest]:
    """Signals only raise a flag while the block runs; the block looks at it when it is safe to stop."""
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_stopped(number: int, _frame: FrameType | None) -> None:
    """The handler for everything that is safe to stop anywhere, because its files appear whole."""
    raise Stopped(f"stopped by {signal.Signals(number).name}; the same command goes on")
