"""HTTP by uvicorn and h11, with a limit to every state of a connection: none is held by a silent or a slow client."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.serving.limits import HEAD_S, MOST_CONNECTIONS


class TimedHttp(H11Protocol):
    """A connection is cut `HEAD_S` after it opened, or after an answer, unless the head of a request has come by then.

    An answer, with the arrival of its request's body, may take as long as the server waits for it at shutdown.
    """

    _cut_timer: asyncio.TimerHandle | None = None
    _timer_is_for_answer = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Of asyncio.Protocol."""
        super().connection_made(transport)
        self._restart_timer()
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio.Protocol."""
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol."""
        super().data_received(data)
        if self._is_answering() and not self._timer_is_for_answer:
            self._restart_timer()

    def on_response_complete(self) -> None:
        """Of uvicorn: an answer is written, and the next request may have come already."""
        super().on_response_complete()
        self._restart_timer()

    def _restart_timer(self) -> None:
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        self._timer_is_for_answer = self._is_answering()
        limit_s = self.config.timeout_graceful_shutdown if self._timer_is_for_answer else HEAD_S
        self._cut_timer = self.loop.call_later(limit_s or HEAD_S, self.transport.abort)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete
