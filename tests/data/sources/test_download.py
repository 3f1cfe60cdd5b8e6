"""Downloads from a real server that is cut off, lies, or is absent."""

import hashlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import DataError
from pipeline.data.sources import download
from pipeline.data.sources.download import Remote, fetch, verify_archive
from tests.helpers.servers import Server, serving

SIZE_BYTES = 3_000_000
CONTENT = b"\x1f\x8b" + np.random.default_rng(0).bytes(SIZE_BYTES - 2)
PAGE = b"<!DOCTYPE html>\n<html><head><title>Log in\n to the network</title></head><body></body></html>"


@pytest.fixture(autouse=True)
def _direct_and_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.001)


def remote_of(*urls: str, content: bytes = CONTENT) -> Remote:
    md5, sha256 = hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest()
    return Remote(urls, len(content), md5, sha256)


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def dead_url() -> str:
    """An address on this machine where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/birds.tgz"


def test_fetch_brings_the_file_into_a_new_folder(tmp_path: Path) -> None:
    target = tmp_path / "archives" / "birds.tgz"
    with serving(Server(CONTENT)) as server:
        fetch(remote_of(server.url), target)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["birds.tgz"]
    assert server.requested == [("/birds.tgz", None)]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_download_goes_on_with_the_missing_bytes_only(tmp_path: Path, share: float) -> None:
    target, cut = tmp_path / "birds.tgz", int(SIZE_BYTES * share)
    with serving(Server(CONTENT, cuts=[cut])) as server:
        fetch(remote_of(server.url), target)
    assert target.read_bytes() == CONTENT
    assert server.requested == [("/birds.tgz", None), ("/birds.tgz", f"bytes={cut}-")]
    assert server.bytes_sent == [cut, SIZE_BYTES - cut]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_later_run_goes_on_with_the_missing_bytes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setattr(
        "pipeline.common.files.CHUNK_BYTES", SIZE_BYTES
    )  # so that no progress is enough for more
    target, cut = tmp_path / "birds.tgz", int(SIZE_BYTES * share)
    with serving(Server(CONTENT, cuts=[cut])) as server:
        with pytest.raises(DataError, match=f"cut the connection at {cut:,} of 3,000,000 bytes"):
            fetch(remote_of(server.url), target)
        assert not target.exists()
        assert part_of(target).read_bytes() == CONTENT[:cut]
        fetch(remote_of(server.url), target)
    assert target.read_bytes() == CONTENT
    assert server.bytes_sent == [cut, SIZE_BYTES - cut]


def test_a_killed_download_leaves_a_beginning_and_the_next_goes_on(tmp_path: Path) -> None:
    target, cut = tmp_path / "birds.tgz", SIZE_BYTES // 2
    with stalling_after(CONTENT[:cut], SIZE_BYTES) as url:
        remote = remote_of(url)
        code = f"from pipeline.data.sources.download import *; fetch({remote!r}, Path({str(target)!r}))"
        child = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 30
        while not (part_of(target).exists() and part_of(target).stat().st_size >= cut):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert part_of(target).read_bytes() == CONTENT[:cut]
    with serving(Server(CONTENT)) as server:
        fetch(remote_of(server.url), target)
    assert target.read_bytes() == CONTENT
    assert server.bytes_sent == [SIZE_BYTES - cut]


@contextmanager
def stalling_after(beginning: bytes, size_bytes: int) -> Iterator[str]:
    """A server that sends the beginning of a file and then nothing, with the connection open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(
                f"HTTP/1.1 200 OK\r\nContent-Length: {size_bytes}\r\n\r\n".encode() + beginning
            )
            held.append(connection)

        held: list[socket.socket] = []
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/birds.tgz"
        thread.join()
        for connection in held:
            connection.close()


def test_a_silent_server_is_left_for_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    target = tmp_path / "birds.tgz"
    with stalling_after(CONTENT[:5000], SIZE_BYTES) as silent, serving(Server(CONTENT)) as mirror:
        fetch(remote_of(silent, mirror.url), target)
    assert target.read_bytes() == CONTENT
    assert mirror.requested == [("/birds.tgz", "bytes=5000-")]


def test_a_server_that_ignores_range_starts_from_zero(tmp_path: Path) -> None:
    target = tmp_path / "birds.tgz"
    part_of(target).write_bytes(CONTENT[:1_000_000])
    with serving(Server(CONTENT, resumes=False)) as server:
        fetch(remote_of(server.url), target)
    assert target.read_bytes() == CONTENT
    assert server.bytes_sent == [SIZE_BYTES]


def test_a_server_that_always_cuts_and_never_resumes_is_given_up(tmp_path: Path) -> None:
    with serving(Server(CONTENT, cuts=[2_000_000] * 50, resumes=False)) as server:
        with pytest.raises(DataError, match="cut the connection at 2,000,000"):
            fetch(remote_of(server.url), tmp_path / "birds.tgz")
    assert len(server.requested) == download.ATTEMPTS + 1  # the first brought something new


def test_many_cuts_are_no_failure_as_long_as_each_attempt_brings_something(tmp_path: Path) -> None:
    content = CONTENT * 4
    with serving(Server(content, cuts=[1 << 20] * 8)) as server:
        fetch(remote_of(server.url, content=content), tmp_path / "birds.tgz")
    assert (tmp_path / "birds.tgz").read_bytes() == content
    assert len(server.requested) == 9 > download.ATTEMPTS


def test_a_content_range_that_was_not_asked_for_is_not_appended(tmp_path: Path) -> None:
    target = tmp_path / "birds.tgz"
    part_of(target).write_bytes(CONTENT[:1_000_000])
    with serving(Server(CONTENT, shifts_range=True)) as server:
        fetch(remote_of(server.url), target)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in server.requested] == ["bytes=1000000-", None]


def test_416_is_asked_again_without_range_and_a_shorter_file_keeps_the_part(tmp_path: Path) -> None:
    target = tmp_path / "birds.tgz"
    part_of(target).write_bytes(CONTENT[:1_000_000])
    with serving(Server(CONTENT[:500_000])) as server:
        with pytest.raises(DataError, match="offers 500,000 bytes where 3,000,000 are expected"):
            fetch(remote_of(server.url), target)
    assert [asked for _, asked in server.requested] == ["bytes=1000000-", None]
    assert part_of(target).read_bytes() == CONTENT[:1_000_000]


@pytest.mark.parametrize("length", [SIZE_BYTES, SIZE_BYTES + 5])
def test_a_part_that_is_whole_is_used_and_one_too_long_is_dropped(tmp_path: Path, length: int) -> None:
    target = tmp_path / "birds.tgz"
    part_of(target).write_bytes((CONTENT + b"extra")[:length])
    with serving(Server(CONTENT)) as server:
        fetch(remote_of(server.url), target)
    assert target.read_bytes() == CONTENT
    assert server.bytes_sent == ([] if length == SIZE_BYTES else [SIZE_BYTES])


def test_a_part_of_another_file_is_found_out_and_fetched_anew(tmp_path: Path) -> None:
    target = tmp_path / "birds.tgz"
    part_of(target).write_bytes(b"x" * 1_000_000)
    with serving(Server(CONTENT)) as server:
        fetch(remote_of(server.url), target)
    assert target.read_bytes() == CONTENT
    assert server.bytes_sent == [2_000_000, SIZE_BYTES]


def test_a_wrong_digest_drops_the_part_and_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "birds.tgz"
    target.write_bytes(b"what was good before")
    changed = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    expected = remote_of("", content=CONTENT).md5
    with serving(Server(changed)) as server:
        with pytest.raises(DataError, match=f"where {expected} is expected.*data.archive=PATH") as caught:
            fetch(remote_of(server.url), target)
    assert hashlib.md5(changed).hexdigest() in str(caught.value)
    assert target.read_bytes() == b"what was good before"
    assert not part_of(target).exists()
    assert len(server.requested) == 1


def test_a_wrong_sha256_is_a_wrong_file(tmp_path: Path) -> None:
    with serving(Server(CONTENT)) as server:
        wrong = Remote((server.url,), SIZE_BYTES, hashlib.md5(CONTENT).hexdigest(), "0" * 64)
        with pytest.raises(DataError, match="its sha256 is"):
            fetch(wrong, tmp_path / "birds.tgz")
    assert list(tmp_path.iterdir()) == []


def test_a_good_target_is_left_alone_and_nothing_is_asked(tmp_path: Path) -> None:
    target = tmp_path / "birds.tgz"
    target.write_bytes(CONTENT)
    before = target.stat().st_mtime_ns
    with serving(Server(CONTENT)) as server:
        fetch(remote_of(server.url), target)
    assert server.requested == [] and target.stat().st_mtime_ns == before


def test_a_target_of_the_right_size_and_wrong_content_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "birds.tgz"
    target.write_bytes(b"x" * SIZE_BYTES)
    with serving(Server(CONTENT)) as server:
        fetch(remote_of(server.url), target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content_type", "beginning"),
    [("text/html; charset=utf-8", b"<!-- any -->"), ("application/gzip", b" \n")],
)
def test_a_web_page_is_named_with_its_title(tmp_path: Path, content_type: str, beginning: bytes) -> None:
    with serving(Server(beginning + PAGE, content_type=content_type)) as server:
        with pytest.raises(DataError, match=r'a web page \("Log in to the network"\)'):
            fetch(remote_of(server.url), tmp_path / "birds.tgz")
    assert len(server.requested) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_instead_of_the_rest_keeps_the_part_for_the_mirror(tmp_path: Path) -> None:
    target = tmp_path / "birds.tgz"
    part_of(target).write_bytes(CONTENT[:1_000_000])
    with (
        serving(Server(PAGE, resumes=False, content_type="text/html")) as portal,
        serving(Server(CONTENT)) as mirror,
    ):
        fetch(remote_of(portal.url, mirror.url), target)
    assert target.read_bytes() == CONTENT
    assert mirror.bytes_sent == [2_000_000]


def test_more_bytes_than_expected_are_refused(tmp_path: Path) -> None:
    with serving(Server(CONTENT + b"more", says_length=False)) as server:
        with pytest.raises(DataError, match="sends more than the 3,000,000 bytes"):
            fetch(remote_of(server.url), tmp_path / "birds.tgz")
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_is_followed_and_resumed(tmp_path: Path) -> None:
    target = tmp_path / "birds.tgz"
    part_of(target).write_bytes(CONTENT[:1_000_000])
    with serving(Server(CONTENT)) as store, serving(Server(b"", statuses=[302], location=store.url)) as door:
        fetch(remote_of(door.url), target)
    assert target.read_bytes() == CONTENT
    assert store.bytes_sent == [2_000_000]


def test_503_is_tried_again_and_404_is_not(tmp_path: Path) -> None:
    with serving(Server(CONTENT, statuses=[503, 429, None])) as busy:
        fetch(remote_of(busy.url), tmp_path / "birds.tgz")
    assert len(busy.requested) == 3
    with serving(Server(CONTENT, statuses=[404] * 9)) as gone:
        with pytest.raises(DataError, match="answered 404 Not Found"):
            fetch(remote_of(gone.url), tmp_path / "other.tgz")
    assert len(gone.requested) == 1


def test_the_mirror_is_used_and_all_failures_are_named(tmp_path: Path) -> None:
    dead = dead_url()
    with serving(Server(CONTENT, statuses=[503] * 9)) as ill, serving(Server(CONTENT)) as mirror:
        fetch(remote_of(dead, ill.url, mirror.url), tmp_path / "birds.tgz")
        assert len(ill.requested) == download.ATTEMPTS and len(mirror.requested) == 1
        ill.statuses = [503] * 9
        with pytest.raises(DataError) as caught:
            fetch(remote_of(dead, ill.url), tmp_path / "other.tgz")
    message = str(caught.value)
    for needed in (dead, "refused", ill.url, "503", "data.archive=PATH", "https_proxy"):
        assert needed in message
    assert "\n" not in message


def test_the_proxy_of_the_environment_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://birds.invalid/CUB.tgz"
    with serving(Server(CONTENT)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        fetch(remote_of(address), tmp_path / "birds.tgz")
        assert proxy.requested == [(address, None)]  # a proxy is asked for the whole address
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        fetch(remote_of(proxy.url), tmp_path / "direct.tgz")
        assert proxy.requested[1:] == [("/birds.tgz", None)]
    assert (tmp_path / "birds.tgz").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "proxy", ["http:nonsense", "http://[::1", "http://a:port", f"http://{'n' * 70}.example"]
)
def test_a_proxy_that_is_no_address_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(DataError, match=r"birds\.tgz: not downloaded, for .*; bring the file yourself"):
        fetch(remote_of(dead_url()), tmp_path / "birds.tgz")


def test_two_processes_do_not_write_one_part(tmp_path: Path) -> None:
    target = tmp_path / "birds.tgz"
    with serving(Server(CONTENT)) as server, download.claimed(part_of(target)):
        with pytest.raises(DataError, match="another process is downloading it"):
            fetch(remote_of(server.url), target)
    assert server.requested == []


def test_a_disk_that_is_too_small_is_refused_before_anything_is_asked(small_disk: Path) -> None:
    with serving(Server(CONTENT)) as server:
        with pytest.raises(DataError, match=r"downloading birds\.tgz needs 2\.9 MiB and 1\.0 MiB are free"):
            fetch(remote_of(server.url), small_disk / "birds.tgz")
    assert server.requested == [] and list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_is_named_and_the_part_stays_good(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.common.files.require_free", lambda *_: None)
    target = small_disk / "birds.tgz"
    with serving(Server(CONTENT)) as server:
        with pytest.raises(DataError, match=r"birds\.tgz\.part: the disk is full; free some space"):
            fetch(remote_of(server.url), target)
    kept = part_of(target).read_bytes()
    assert len(kept) > 500_000 and CONTENT.startswith(kept)


def test_verify_archive_names_what_is_wrong(tmp_path: Path) -> None:
    archive, md5 = tmp_path / "birds.tgz", hashlib.md5(CONTENT).hexdigest()
    with pytest.raises(DataError, match=r"no such file; set data\.archive"):
        verify_archive(archive, md5)
    archive.write_bytes(CONTENT)
    verify_archive(archive, md5)
    verify_archive(archive, md5.upper(), SIZE_BYTES)
    archive.write_bytes(CONTENT[:-1])
    with pytest.raises(
        DataError, match=r"truncated, 2,999,999 of 3,000,000 bytes .*archive_md5=[0-9a-f]{32} if"
    ):
        verify_archive(archive, md5, SIZE_BYTES)
    digest = hashlib.md5(CONTENT[:-1]).hexdigest()
    with pytest.raises(
        DataError, match=f"md5 is {digest} where {md5} is expected.*data.archive_md5={digest}"
    ):
        verify_archive(archive, md5)
    archive.write_bytes(PAGE)
    with pytest.raises(DataError, match=r'a web page \("Log in to the network"\)'):
        verify_archive(archive, md5)


def test_the_file_is_in_place_only_after_it_was_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, synced = tmp_path / "birds.tgz", []
    monkeypatch.setattr("pipeline.common.files.sync", lambda path: synced.append((path, target.exists())))
    with serving(Server(CONTENT)) as server:
        fetch(remote_of(server.url), target)
    assert synced == [(part_of(target), False), (tmp_path, True)]
    assert list(tmp_path.iterdir()) == [target]
