"""What every request passes: the token, the clock, and the line of the log."""

import asyncio
import hmac
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving import logs
from pipeline.serving.limits import Refusal, busy
from pipeline.serving.service import Service

METRICS = "/metrics"
PROBES = "/healthz", "/readyz", METRICS
OPEN = "/", "/healthz", "/readyz"
"""paths that need no token: the page asks for it"""
HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Gate:
    """An ASGI application in front of the one that answers."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        paths: frozenset[str],
        token: str | None,
        *,
        open_metrics: bool = False,
    ) -> None:
        """Guard an application.

        Args:
            paths: that may be named in a log; others are "other".
            token: that a request has to show; None: none.
            open_metrics: whether /metrics needs none, either.
        """
        self._app, self._service, self._paths = app, service, paths
        self._token = None if token is None else token.encode()
        self._open = (*OPEN, METRICS) if open_metrics else OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":  # of a web socket: there is none
            await self._app(scope, receive, send)
            return
        exchange, started = _Exchange(scope, receive, send), time.perf_counter()
        try:
            async with asyncio.timeout(self._service.limits.seconds):
                self._check_token(scope)
                await self._app(scope, exchange.receive, exchange.send)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except TimeoutError:
            await exchange.refuse(exchange.too_slow(self._service.limits.seconds))
        finally:
            self._note(scope, exchange, time.perf_counter() - started)

    def _check_token(self, scope: Scope) -> None:
        if self._token is None or scope["path"] in self._open:
            return
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(b" "), self._token):
            raise Refusal(401, "send the token of this server: `Authorization: Bearer TOKEN`")

    def _note(self, scope: Scope, exchange: "_Exchange", seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        metrics = self._service.metrics
        metrics.requests.labels(path, str(exchange.status)).inc()
        metrics.seconds.labels(path).observe(seconds)
        if path in PROBES and exchange.status == 200:
            return
        said = scope.get("state", {}).get("said", {})
        logs.event(
            "request",
            method=scope["method"],
            path=path,
            status=exchange.status,
            ms=round(seconds * 1000, 1),
            bytes=exchange.bytes,
            **said,
        )


class _Exchange:
    """One request and its answer, as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.status: int | None = None  # of the answer, once it has begun
        self.bytes = 0  # of the body that have arrived
        self._whole = False

    async def receive(self) -> Message:
        message = await self._receive()
        self.bytes += len(message.get("body", b""))
        self._whole = message["type"] == "http.request" and not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], *HEADERS]}
        await self._send(message)

    def too_slow(self, seconds: float) -> Refusal:
        """Whether the client or this server was too slow."""
        if self._whole or self._scope["method"] in ("GET", "HEAD"):
            return busy(f"and has not answered within {seconds:g} s")
        return Refusal(408, f"the request has not arrived within {seconds:g} s")

    async def refuse(self, refusal: Refusal) -> None:
        """Send it, unless an answer has begun: then the connection is cut, so that no half answer looks whole."""
        if self.status is None:
            await refused(refusal)(self._scope, self.receive, self.send)


def refused(refusal: Refusal) -> JSONResponse:
    """The HTTP response of a refusal."""
    return JSONResponse({"error": refusal.reason}, refusal.status, refusal.headers)
