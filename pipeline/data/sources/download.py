"""Fetch a file: resume where it was cut, check it, and put it in place whole.

`urllib` of the standard library does it: what is needed is one GET with a Range header, and it
honours http_proxy, https_proxy and no_proxy; `requests` would be one more dependency of our own.
"""

import errno
import fcntl
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from io import FileIO
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from pipeline.common import console, files
from pipeline.common.errors import DataError

TIMEOUT_SECONDS = 30.0  # to connect, and for each silence of the server after that
ATTEMPTS = 4  # at one URL, in a row, without files.CHUNK_BYTES of progress
BACKOFF_SECONDS = 1.0  # before the second attempt; doubled before each further one
HEAD_BYTES = 1024  # enough to tell a page from an archive
PAGE_BYTES = 1 << 16  # enough to find a page's title
ASK_AGAIN = (408, 425, 429)  # besides 5xx: the statuses that may be gone in a moment


@dataclass(frozen=True)
class Remote:
    """A file to fetch: its addresses (the first, then mirrors), its size and its digests in hexadecimal."""

    urls: tuple[str, ...]
    size_bytes: int
    md5: str
    sha256: str | None = None


class _Failure(Exception):
    """Why one attempt at a URL ended; `again` says whether another attempt may help."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def fetch(remote: Remote, target: Path) -> None:
    """Bring `target` into place; return at once when it is there with the right digests.

    What has arrived waits in `<target>.part`, always a beginning of the file, and the next call
    goes on from there. A `DataError` says why no URL led to the file, or that the disk is full.
    """
    if _is_whole(target, remote):
        return
    part = target.with_name(target.name + ".part")
    reasons = []
    with claimed(part) as stream:
        if _length(stream) > remote.size_bytes:
            stream.truncate(0)
        missing_bytes = remote.size_bytes - _length(stream)
        files.require_free(target.parent, missing_bytes, f"downloading {target.name}")
        for url in remote.urls:
            try:
                _fetch_from(url, remote, part, stream)
            except _Failure as failure:
                reasons.append(f"{url} {failure}")
                continue
            files.sync(part)
            part.replace(target)
            files.sync(target.parent)
            return
    raise DataError(
        f"{target.name}: not downloaded, for {'; '.join(reasons)}; bring the file yourself and set "
        "data.archive=PATH, or set https_proxy if this machine needs a proxy, and run again"
    )


@contextmanager
def limited_silence() -> Iterator[None]:
    """Give new connections of this process `TIMEOUT_SECONDS` where they have no timeout of their own (torchvision's)."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def verify_archive(path: Path, md5: str, size_bytes: int | None = None) -> None:
    """Raise a `DataError` unless `path` is a file with this digest (and this size, where it is known)."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; set data.archive to the archive's path")
    if (title := _title_of_page(path)) is not None:
        raise DataError(
            f"{path}: a web page{title} and not an archive; download the archive itself, "
            "in a browser if need be, and set data.archive to it"
        )
    length = path.stat().st_size
    digest = files.digest_of_file(path, "md5")
    if size_bytes is not None and length < size_bytes:
        raise DataError(
            f"{path}: truncated, {length:,} of {size_bytes:,} bytes are there; download it "
            f"again, or set data.archive_md5={digest} if you mean this other archive"
        )
    if digest != md5.lower():
        raise DataError(
            f"{path}: its md5 is {digest} where {md5} is expected; download it again, or set "
            f"data.archive_md5={digest} if you mean this other archive"
        )


def _is_whole(target: Path, remote: Remote) -> bool:
    right_size = target.is_file() and target.stat().st_size == remote.size_bytes
    return right_size and _wrong_digest(target, remote) is None


def _wrong_digest(path: Path, remote: Remote) -> str | None:
    """What is wrong with a file's digests, in words; None when they are right."""
    for algorithm, expected in (("md5", remote.md5), ("sha256", remote.sha256)):
        if expected and (digest := files.digest_of_file(path, algorithm)) != expected:
            return f"its {algorithm} is {digest} where {expected} is expected"
    return None


@contextmanager
def claimed(part: Path) -> Iterator[FileIO]:
    """Open `part` to append, for this process alone: two that append would mix their bytes."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab", buffering=0) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not part.exists():
                raise BlockingIOError("the other process renamed it just now")
        except BlockingIOError as error:
            raise DataError(
                f"{part}: another process is downloading it; wait until it ends, then run again"
            ) from error
        except OSError as error:
            console.warn(
                f"{part}: this disk has no locks ({error.strerror}); do not download it twice at once"
            )
        try:
            yield stream
        finally:
            if not _length(stream):
                part.unlink(missing_ok=True)


def _length(stream: FileIO) -> int:
    return os.fstat(stream.fileno()).st_size


def _fetch_from(url: str, remote: Remote, part: Path, stream: FileIO) -> None:
    """Make `part` whole from one URL; a `_Failure` says why that did not work."""
    resumed = _length(stream) > 0
    furthest, failed = _length(stream), 0
    while True:
        try:
            _receive(url, remote.size_bytes, stream)
            if wrong := _wrong_digest(part, remote):
                stream.truncate(0)
                again, resumed = resumed, False  # the beginning may have been another file's
                raise _Failure(f"gave a wrong file: {wrong}", again)
            return
        except _Failure as failure:
            failed = 0 if _length(stream) >= furthest + files.CHUNK_BYTES else failed + 1
            furthest = max(furthest, _length(stream))
            if not failure.again or failed == ATTEMPTS:
                raise
            console.warn(f"{url} {failure}; trying again")
            time.sleep(BACKOFF_SECONDS * 2 ** max(failed - 1, 0))


def _receive(url: str, size_bytes: int, stream: FileIO) -> None:
    """Append to `stream`, in one request, what it lacks."""
    done = _length(stream)
    if done == size_bytes:
        return
    reply, done = _ask(url, done, size_bytes)
    with reply:
        chunk = _read(reply.read, HEAD_BYTES)
        _refuse_other_content(reply, chunk, done, size_bytes)
        stream.truncate(done)
        with console.bar("download", total=size_bytes, unit="bytes", done=done) as bar:
            while chunk:
                done += len(chunk)
                if done > size_bytes:
                    stream.truncate(0)
                    raise _Failure(f"sends more than the {size_bytes:,} bytes that are expected", again=False)
                _append(stream, chunk, url)
                bar.advance(len(chunk))
                chunk = _read(reply.read1, files.CHUNK_BYTES)
            if done < size_bytes:
                raise _Failure(f"cut the connection at {done:,} of {size_bytes:,} bytes", again=True)


def _ask(url: str, start: int, size_bytes: int) -> tuple[HTTPResponse, int]:
    """A reply and the byte it begins with: `start`, or 0 where the server does not resume."""
    request = Request(url, headers={"User-Agent": "plumage"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        # a fresh opener reads the proxy variables as they are now
        reply: HTTPResponse = build_opener().open(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if start and error.code == 416:
            return _ask(url, 0, size_bytes)
        again = error.code >= 500 or error.code in ASK_AGAIN
        raise _Failure(f"answered {error.code} {error.reason}", again) from error
    except (OSError, HTTPException) as error:
        raise _broken(error) from error
    except ValueError as error:  # of an address in the environment
        raise _Failure(f"could not be asked through the proxy of the environment ({error})", False) from error
    if reply.status != 206:
        return reply, 0
    content_range = reply.headers.get("Content-Range", "")
    if start and re.fullmatch(rf"bytes {start}-\d+/({size_bytes}|\*)", content_range):
        return reply, start
    reply.close()
    if start:
        return _ask(url, 0, size_bytes)
    raise _Failure(f"answered with a part ({content_range}) that was not asked for", again=False)


def _read(read: Callable[[int], bytes], count: int) -> bytes:
    try:
        return read(count)
    except (OSError, HTTPException) as error:
        raise _broken(error) from error


def _broken(error: OSError | HTTPException) -> _Failure:
    """An error of the network as a `_Failure`; a certificate stays wrong however often one asks."""
    reason = error.reason if isinstance(error, URLError) else error
    again = not isinstance(reason, ssl.SSLCertVerificationError)
    return _Failure(f"could not be read ({str(reason) or type(reason).__name__})", again)


def _refuse_other_content(reply: HTTPResponse, head: bytes, start: int, size_bytes: int) -> None:
    """Raise a `_Failure` when a reply is a web page, or a file of another size."""
    if reply.headers.get_content_type() == "text/html" or (start == 0 and _is_page(head)):
        page = head + _read(reply.read, PAGE_BYTES)
        raise _Failure(f"answered with a web page{_title(page)} in place of the file", again=False)
    length = reply.headers.get("Content-Length", "")
    if start == 0 and length.isdigit() and int(length) != size_bytes:
        raise _Failure(f"offers {int(length):,} bytes where {size_bytes:,} are expected", again=False)


def _append(stream: FileIO, chunk: bytes, url: str) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[stream.write(view) :]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{stream.name}: the disk is full; free some space or set data.root to another disk, "
            f"and run again: the download of {url} goes on from where it is"
        ) from error


def _is_page(head: bytes) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head"))


def _title(page: bytes) -> str:
    """` ("Title")` of a page in HTML, or nothing when it has none."""
    match = re.search(rb"<title[^>]*>(.*?)</title", page, re.IGNORECASE | re.DOTALL)
    title = " ".join(match[1].decode("utf-8", "replace").split()) if match else ""
    return f' ("{title}")' if title else ""


def _title_of_page(path: Path) -> str | None:
    """The title of a file that is a web page (empty when it has none), None for any other file."""
    with path.open("rb") as stream:
        head = stream.read(PAGE_BYTES)
    return _title(head) if _is_page(head) else None
