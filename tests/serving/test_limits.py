"""What goes beyond a limit is refused at once, in a sentence, and the next request is answered as ever."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest

from pipeline.export.standalone import crop_of_stream
from pipeline.serving import decoding, timed_http
from pipeline.serving.app import application
from pipeline.serving.limits import MIB, DecodingRoom, Limits, Load, Refusal
from pipeline.serving.service import Service
from tests.helpers.serving import (
    WAIT_S,
    HeldModel,
    Running,
    answer,
    connection,
    expected,
    form,
    head,
    picture,
    running,
    sent,
)

LIMITS = Limits(request_bytes=100_000, pixels=10_000, files=3, requests=4, pictures=5)


@pytest.fixture(scope="module")
def server(export: Path) -> Iterator[Running]:
    with running(HeldModel(export), LIMITS) as one:
        yield one


def post(server: Running, *contents: bytes) -> httpx.Response:
    return httpx.post(f"{server.url}/predict", files=sent(*contents), timeout=WAIT_S)


def wait_until(server: Running, requests: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while server.service.load.requests != requests:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_claim_of_a_gigabyte_is_refused_before_a_byte_of_it(server: Running) -> None:
    with connection(server.port) as one:
        one.sendall(head(10**9))
        status, said = answer(one)
    assert (status, said) == (413, b'{"error":"a request may have 0.0953674 MiB"}')


def test_a_body_that_grows_beyond_the_limit_is_refused_while_it_comes(server: Running) -> None:
    with connection(server.port) as one:
        one.sendall(head(None) + b"186a0\r\n" + form(bytes(200_000))[:100_000] + b"\r\n")
        one.sendall(b"1\r\n0\r\n")  # and no end
        assert answer(one)[0] == 413


def test_the_bodies_of_all_requests_together_have_a_limit() -> None:
    load = Load(Limits(request_bytes=6 * MIB, held_bytes=10 * MIB))
    with load.request() as one:
        one.add(6 * MIB)
        with load.request() as other:
            other.add(4 * MIB)
            with pytest.raises(Refusal, match="busy, with 10 MiB of pictures") as refused:
                other.add(1)
            assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        with load.request() as third:
            third.add(4 * MIB)
    assert (load.bytes, load.requests) == (0, 0)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(server: Running) -> None:
    refused = post(server, picture(1, 101, 100))
    assert refused.status_code == 413
    assert refused.json()["error"] == "no picture: 101 x 100 pixels; a picture may have 10,000"
    whole = picture(1, 3000, 3000)
    assert post(server, whole[:100]).json()["error"].startswith("no picture: 3000 x 3000 pixels")


def test_too_many_files_are_refused(server: Running) -> None:
    refused = post(server, *[picture(1)] * 4)
    assert (refused.status_code, refused.json()) == (422, {"error": "a request may have 3 files"})
    assert post(server, *[picture(1)] * 3).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"url": (None, b"http://127.0.0.1/a.png")},
        {"pictures": (None, b"http://127.0.0.1/a.png")},
        {"pictures": ("a.png", picture(1)), "path": (None, b"/etc/passwd")},
        {"other": ("a.png", picture(1))},
    ],
)
def test_only_files_of_the_one_field_are_taken(
    fields: dict[str, tuple[str | None, bytes]], server: Running
) -> None:
    refused = httpx.post(f"{server.url}/predict", files=fields)
    assert (refused.status_code, "field `pictures`" in refused.json()["error"]) == (422, True)


def test_another_content_type_is_refused(server: Running) -> None:
    for kind in ("image/png", "application/json", "application/x-www-form-urlencoded", "multipart/mixed"):
        refused = httpx.post(f"{server.url}/predict", content=picture(1), headers={"content-type": kind})
        assert (refused.status_code, "multipart/form-data" in refused.json()["error"]) == (415, True)


def test_who_sends_a_body_slowly_is_refused(export: Path) -> None:
    with running(HeldModel(export), replace(LIMITS, seconds=0.4)) as server, connection(server.port) as one:
        one.sendall(head(1000) + b"--X\r\n")
        assert answer(one) == (408, b'{"error":"the request has not arrived within 0.4 s"}')


@pytest.mark.parametrize("said", [b"", b"POST /predict HTTP/1.1\r\nHost: he"])
def test_a_connection_that_does_not_say_what_it_wants_is_cut(
    said: bytes, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_http, "HEAD_S", 0.3)
    with connection(server.port) as one:
        one.sendall(said)
        assert answer(one) == (0, b"")


def test_a_connection_that_goes_on_sending_after_its_answer_is_cut(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_http, "HEAD_S", 0.3)
    with connection(server.port) as one:
        one.sendall(head(10**9))
        assert answer(one)[0] == 413
        with pytest.raises(OSError):
            for _ in range(10_000):
                one.sendall(bytes(1000))
                time.sleep(0.005)


def test_too_many_connections_are_cut(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_http, "MOST_CONNECTIONS", 1)
    with connection(server.port) as first, connection(server.port) as second:
        first.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        assert answer(first)[0] == 200
        assert answer(second) == (0, b"")


def test_a_model_that_takes_too_long_is_a_busy_server(export: Path) -> None:
    model = HeldModel(export)
    with running(model, replace(LIMITS, seconds=0.4)) as server:
        model.may_answer.clear()
        refused = post(server, picture(1))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        model.may_answer.set()
        assert post(server, picture(1)).status_code == 200


def test_overload_is_refused_at_once_and_those_in_hand_are_answered_right(
    export: Path, tmp_path: Path
) -> None:
    model = HeldModel(export)
    with running(model, LIMITS) as server, ThreadPoolExecutor(4) as clients:
        model.may_answer.clear()
        in_hand = [clients.submit(post, server, picture(n)) for n in range(4)]
        wait_until(server, 4)
        refused = post(server, picture(9))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "busy, with 4 requests" in refused.json()["error"]
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        model.may_answer.set()
        found = [one.result().json()["pictures"][0] for one in in_hand]
        assert found == [{"image": "a.png", **expected(export, picture(n), tmp_path)} for n in range(4)]
        wait_until(server, 0)
        assert (
            post(server, picture(9)).json()["pictures"][0]["classes"]
            == (expected(export, picture(9), tmp_path)["classes"])
        )


def test_pictures_in_hand_have_a_limit(export: Path) -> None:
    model = HeldModel(export)
    with running(model, LIMITS) as server, ThreadPoolExecutor(1) as clients:
        model.may_answer.clear()
        in_hand = clients.submit(post, server, *[picture(1)] * 3)
        assert model.asked.wait(WAIT_S)
        refused = post(server, *[picture(1)] * 3)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "busy, with 3 pictures" in refused.json()["error"]
        model.may_answer.set()
        assert in_hand.result().status_code == 200
    assert server.service.load.pictures == 0


class Decoders:
    """How many pictures are decoded at one time, each for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()
        monkeypatch.setattr(decoding, "crop_of_stream", self._counted)

    def _counted(self, stream: BinaryIO, given: dict[str, Any]) -> Any:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.03)
        try:
            return crop_of_stream(stream, given)
        finally:
            with self._lock:
                self.now -= 1


@pytest.mark.parametrize(("room", "most"), [(6500, 2), (3000, 1), (10, 1)])
def test_only_so_many_pixels_are_decoded_at_one_time_and_the_others_wait(
    room: int, most: int, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [picture(n, 60, 50) for n in range(8)]
    with running(HeldModel(export), Limits(decoding_pixels=room), threads=8) as server:
        decoders = Decoders(monkeypatch)
        found = post(server, *contents[:4], b"no picture", *contents[4:]).json()["pictures"]
    assert found.pop(4)["error"].startswith("not a picture")
    assert found == [{"image": "a.png", **expected(export, content, tmp_path)} for content in contents]
    assert decoders.most <= most


def test_small_pictures_do_not_keep_a_large_one_waiting() -> None:
    room, started = DecodingRoom(100), threading.Event()
    order: list[str] = []

    def decode(name: str, pixels: int) -> None:
        started.set()
        with room.holding(pixels):
            order.append(name)

    with room.holding(60):
        threads = []
        for name, pixels in (("large", 100), ("small", 10)):
            threads.append(threading.Thread(target=decode, args=(name, pixels)))
            threads[-1].start()
            assert started.wait(WAIT_S)
            started.clear()
            time.sleep(0.1)  # it waits by now
        assert order == []
    for thread in threads:
        thread.join(WAIT_S)
    assert order == ["large", "small"]
    with pytest.raises(ValueError), room.holding(70):
        raise ValueError
    assert room.taken == 0


def test_the_pod_has_the_memory_that_the_limits_allow() -> None:
    root = Path(__file__).parents[2]
    [said] = re.findall(r"some (\d+) bytes a pixel", (root / "docs/serving.md").read_text())
    [memory] = re.findall(r"limits: {memory: (\d+)Gi}", (root / "scripts/k8s/serve.yaml").read_text())
    limits = Limits()
    idle = 500 * MIB  # measured: 248 MiB at the start
    assert int(memory) * 1024 * MIB > int(said) * limits.decoding_pixels + limits.held_bytes + idle


def test_a_client_that_goes_away_leaves_nothing_behind(
    server: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    with connection(server.port) as one:
        one.sendall(head(1000) + b"--X\r\n")
        wait_until(server, 1)
    wait_until(server, 0)
    assert post(server, picture(1)).status_code == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic 0123456789abcdef"}, 401),
        ({"authorization": "Bearer0123456789abcdef"}, 401),
        ({"authorization": "bearer 0123456789ABCDEF"}, 401),
        ({"authorization": "Bearer 0123456789abcdef"}, 200),
        ({"authorization": "bearer 0123456789abcdef"}, 200),
        ({"authorization": "BEARER  0123456789abcdef"}, 200),
    ],
)
def test_a_token_is_asked_for(header: dict[str, str], status: int, export: Path) -> None:
    with running(HeldModel(export), token="0123456789abcdef") as server:
        answered = httpx.post(f"{server.url}/predict", files=sent(picture(1)), headers=header)
        assert answered.status_code == status
        assert (answered.headers.get("www-authenticate") == "Bearer") == (status == 401)
        for path in ("model", "metrics", "openapi.json"):
            assert httpx.get(f"{server.url}/{path}", headers=header).status_code == status
        for path in ("", "healthz", "readyz"):
            assert httpx.get(f"{server.url}/{path}").status_code == 200


def test_metrics_may_be_open_where_the_rest_asks_for_a_token(export: Path) -> None:
    async def statuses(open_metrics: bool) -> dict[str, int]:
        app = application(service, "0123456789abcdef", open_metrics=open_metrics)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return {
                path: (await client.get(path)).status_code for path in ("/metrics", "/model", "/openapi.json")
            }

    service = Service(HeldModel(export), Limits(), threads=1)
    try:
        assert asyncio.run(statuses(False)) == {"/metrics": 401, "/model": 401, "/openapi.json": 401}
        assert asyncio.run(statuses(True)) == {"/metrics": 200, "/model": 401, "/openapi.json": 401}
    finally:
        service.close()
