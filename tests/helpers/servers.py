"""A real HTTP server on this machine, that misbehaves as it is told to."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """What is served, how, and what was asked for.

    `cuts` and `statuses` are used up from the front, one a request: after so many bytes of the
    body the connection is cut; this status is answered in place of the content (None: neither).
    """

    content: bytes
    cuts: list[int | None] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)
    resumes: bool = True  # False: a Range header is ignored
    shifts_range: bool = False  # the Content-Range is not the one that was asked for
    content_type: str = "application/gzip"
    says_length: bool = True
    location: str = ""  # where a status of 3xx leads
    url: str = ""
    requested: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range header
    bytes_sent: list[int] = field(default_factory=list)  # of the body, one a request with content

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requested.append((handler.path, asked))
        handler.close_connection = True
        status = self.statuses.pop(0) if self.statuses else None
        start = int(re.findall(r"\d+", asked)[0]) if asked and self.resumes else 0
        if status is None and start >= len(self.content):
            status = 416
        if status is not None:
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            if self.location:
                handler.send_header("Location", self.location)
            handler.end_headers()
            return
        self.send_content(handler, start, partial=asked is not None and self.resumes)

    def send_content(self, handler: BaseHTTPRequestHandler, start: int, partial: bool) -> None:
        body = self.content[start:]
        handler.send_response(206 if partial else 200)
        handler.send_header("Content-Type", self.content_type)
        if self.says_length:
            handler.send_header("Content-Length", str(len(body)))
        if partial:
            total = len(self.content)
            first = start + 1 if self.shifts_range else start
            handler.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        body = body if cut is None else body[:cut]
        self.bytes_sent.append(len(body))
        handler.wfile.write(body)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run `server` on a free port of this machine while the block lasts; `server.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # a client may hang up as soon as it has seen enough
            try:
                server.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_port}/birds.tgz"
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
