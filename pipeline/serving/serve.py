"""The verb `serve`: one process that answers over HTTP until a signal ends it, and then finishes what it has begun."""

import asyncio
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn

from pipeline.common import console, hardware, signals
from pipeline.common.errors import ConfigError
from pipeline.serving import logs
from pipeline.serving.app import application
from pipeline.serving.limits import HEAD_S, Limits
from pipeline.serving.served_model import ServedModel, find_export, warn_of_another_checkpoint
from pipeline.serving.service import Service
from pipeline.serving.timed_http import TimedHttp
from pipeline.webpage.page import Form

TOKEN = "PLUMAGE_SERVE_TOKEN"
SHORTEST_TOKEN = 16
TICK_S = 0.1


@dataclass(frozen=True)
class ServerOptions:
    """Options of `plumage serve`."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: a free one"""
    threads: int | None = None
    """that decode, and as many that compute; None: one a core"""
    drain_s: float = 0.0
    """seconds from a signal, when readiness goes, until no connection is taken any more"""
    form: Form = "fp32"
    """of the model"""
    limits: Limits = field(default_factory=Limits)
    open_metrics: bool = False
    """whether /metrics is answered without the token"""


def serve(path: Path, options: ServerOptions) -> dict[str, Any]:
    """Serve an export, or that of a run, until SIGTERM or SIGINT; what was answered, in plain types.

    Raises:
        ConfigError: the address is not free, or the token in the environment is not one.
        DataError, ExportError: there is no export, or it does not prove itself.
    """
    token = _token()
    folder = find_export(path)
    model = ServedModel(folder, options.limits.batch, options.form)
    if folder != path:
        warn_of_another_checkpoint(path, model)
    listener = listen(options.host, options.port)
    if token is None and not _is_loopback(listener):
        console.warn(
            f"anybody who can reach {options.host} may send requests; set {TOKEN} to a token of your own"
        )
    service = Service(model, options.limits, options.threads or hardware.cores())
    try:
        with listener, signals.deferred() as stop:
            asyncio.run(
                answer_until(
                    stop, service, listener, token, options.drain_s, open_metrics=options.open_metrics
                )
            )
    finally:
        service.close()
    return service.metrics.totals() | {"stopped_by": stop.name}


def _token() -> str | None:
    """What a request has to show; None without one in the environment."""
    token = os.environ.get(TOKEN)
    if token is None:
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{TOKEN}: is not a token; use {SHORTEST_TOKEN} or more letters and digits (`openssl rand -hex 16`), "
            "or unset it"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        ConfigError: the address is not free, not of this machine, not permitted, or not an address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, UnicodeError) as error:  # with those of a name: gaierror, and one that can be none
        reason = (
            str(error.strerror).partition(" (while")[0] if isinstance(error, OSError) else "not a host name"
        )
        raise ConfigError(
            f"{host}, port {port}: cannot listen there ({reason}); give another --host or --port"
        ) from error


def _is_loopback(listener: socket.socket) -> bool:
    return ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


async def answer_until(
    stop: signals.StopRequest,
    service: Service,
    listener: socket.socket,
    token: str | None = None,
    drain_s: float = 0.0,
    *,
    open_metrics: bool = False,
) -> None:
    """Answer what comes to a listening socket until a stop is requested, and finish what has come until then.

    Args:
        token: that requests have to show; None: none.
        drain_s: seconds between the end of readiness and the end of listening.
        open_metrics: whether /metrics is answered without the token.
    """
    logs.start()
    config = uvicorn.Config(
        application(service, token, open_metrics=open_metrics),
        http=TimedHttp,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(service.limits.seconds + HEAD_S),
    )
    server = _Server(config)
    ending = asyncio.create_task(_end_when_asked(server, service, drain_s, stop))
    host, port = listener.getsockname()[:2]
    where = f"[{host}]" if ":" in host else host
    logs.event(
        "listening",
        url=f"http://{where}:{port}",
        threads=service.threads,
        batch=service.model.batch,
        token=token is not None,
        **service.identity,
    )
    await server.serve(sockets=[listener])
    await ending


async def _end_when_asked(
    server: uvicorn.Server, service: Service, drain_s: float, stop: signals.StopRequest
) -> None:
    while stop.name is None:
        await asyncio.sleep(TICK_S)
    service.stopping = True
    logs.event("ending", signal=stop.name, requests=service.load.requests)
    await asyncio.sleep(drain_s)
    server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn's, which leaves the signals to this program."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing."""
        yield
