"""What one server takes on. What goes beyond it is refused at once, in one sentence; only decoding waits."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MIB = 2**20
RETRY_AFTER_S = 1
HEAD_S = 10.0
"""seconds for the head of a request to arrive, and for which a connection may be idle"""
MOST_CONNECTIONS = 512


@dataclass(frozen=True)
class Limits:
    """Of one server; what has no limit here is bounded by these."""

    request_bytes: int = 32 * MIB
    """of the body of one request"""
    held_bytes: int = 256 * MIB
    """of the bodies of all requests together"""
    pixels: int = 50_000_000
    """of one picture, width times height, as its header says"""
    decoding_pixels: int = 100_000_000
    """of all pictures that are being decoded at one time; a larger one is decoded alone"""
    files: int = 16
    """in one request"""
    seconds: float = 30.0
    """for one request: to arrive, to be decoded, to be answered"""
    requests: int = 64
    """at a time"""
    pictures: int = 128
    """that are decoded or wait for the model, at a time"""
    batch: int = 8
    """pictures that the model takes at once"""


class Refusal(Exception):
    """A request is not answered."""

    def __init__(self, status: int, reason: str, *, again: bool = False) -> None:
        """status: of HTTP; reason: a sentence for the client; again: whether the same request may do later."""
        super().__init__(reason)
        self.status, self.reason, self.again = status, reason, again

    @property
    def headers(self) -> dict[str, str]:
        """Those of the answer that says it."""
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.again else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def busy(what: str) -> Refusal:
    """The refusal of a server that has enough to do."""
    return Refusal(503, f"the server is busy, {what}; send it again after {RETRY_AFTER_S} s", again=True)


class Load:
    """What a server has in hand. It is counted in one thread, that of the event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = self.pictures = self.bytes = 0

    @contextmanager
    def request(self) -> Iterator["ReceivedBytes"]:
        """Take a request on for the time of the block.

        Raises:
            Refusal: the server is busy.
        """
        if self.requests >= self.limits.requests:
            raise busy(f"with {self.requests} requests")
        self.requests += 1
        body = ReceivedBytes(self)
        try:
            yield body
        finally:
            self.requests -= 1
            self.bytes -= body.bytes

    @contextmanager
    def waiting(self, pictures: int) -> Iterator[None]:
        """Take pictures on for the time of the block.

        Raises:
            Refusal: the server is busy.
        """
        if self.pictures + pictures > self.limits.pictures:
            raise busy(f"with {self.pictures} pictures")
        self.pictures += pictures
        try:
            yield
        finally:
            self.pictures -= pictures


class ReceivedBytes:
    """The bytes that one request has sent so far."""

    def __init__(self, load: Load) -> None:
        self._load, self.bytes = load, 0

    def add(self, size_bytes: int) -> None:
        """Count bytes that have arrived.

        Raises:
            Refusal: they are too many for one request, or for the server.
        """
        limits = self._load.limits
        if self.bytes + size_bytes > limits.request_bytes:
            raise too_large(limits)
        if self._load.bytes + size_bytes > limits.held_bytes:
            raise busy(f"with {self._load.bytes / MIB:.0f} MiB of pictures")
        self.bytes += size_bytes
        self._load.bytes += size_bytes


class DecodingRoom:
    """How many pixels may be decoded at one time, over all threads: they are what decoding takes memory for."""

    def __init__(self, pixels: int) -> None:
        self.pixels, self.taken = pixels, 0
        self._first = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, pixels: int) -> Iterator[None]:
        """Wait until a picture of so many pixels has room, and hold it for the time of the block.

        The wait ends: those who hold room decode, and wait for nothing. One thread waits for room and the others for
        that one, so that small pictures never keep a large one waiting.
        """
        wanted = min(pixels, self.pixels)
        with self._first, self._changed:
            self._changed.wait_for(lambda: self.taken + wanted <= self.pixels)
            self.taken += wanted
        try:
            yield
        finally:
            with self._changed:
                self.taken -= wanted
                self._changed.notify_all()


def too_large(limits: Limits) -> Refusal:
    """The refusal of a body that is larger than one request may be."""
    return Refusal(413, f"a request may have {limits.request_bytes / MIB:g} MiB")
