"""Some 400 uploads that nobody sends by mistake: each is answered 4xx within its limit, and the server goes on."""

import io
import random
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.pictures import FORMATS
from pipeline.serving.limits import Limits
from tests.helpers.serving import (
    HeldModel,
    Running,
    answer,
    connection,
    expected,
    form,
    head,
    picture,
    running,
)

LIMITS = Limits(request_bytes=4_000_000, pixels=1_000_000, seconds=60)
FUZZED = [name for name in FORMATS if name != "HEIF"]
CASES_A_FORMAT = 40


@pytest.fixture(scope="module")
def server(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(HeldModel(export), LIMITS) as one:
        yield one
        [after] = statuses(one, [form(picture(1))])
        assert after == 200
        assert (one.service.load.requests, one.service.load.bytes) == (0, 0)


def statuses(server: Running, bodies: list[bytes]) -> list[int]:
    found = []
    for body in bodies:
        with connection(server.port) as one:
            one.sendall(head(len(body)) + body)
            found.append(answer(one)[0])
    return found


def said(server: Running, sent: bytes) -> tuple[int, bytes]:
    """The answer to what is no proper request, and perhaps not read to its end."""
    with connection(server.port) as one:
        with suppress(OSError):  # it is cut before all is sent
            one.sendall(sent)
            one.shutdown(socket.SHUT_WR)
        return answer(one)


# Pictures


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Cut, flipped, overwritten, doubled or mixed."""
    place = draw.randrange(len(content))
    match draw.randrange(6):
        case 0:
            return content[:place]
        case 1:
            return bytes(byte ^ (draw.random() < 0.02) * draw.randrange(256) for byte in content)
        case 2:
            return content[:16] + bytes(len(content) - 16)
        case 3:
            return content[:16] + draw.randbytes(len(content))
        case 4:
            return content[:place] + b"\xff" * 8 + content[place:]
        case _:
            return content[place:] + content[:place]


@pytest.mark.parametrize("format_", FUZZED)
def test_a_damaged_picture_is_refused_or_shown_as_it_decodes(
    format_: str, server: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(format_)
    whole = picture(1, format_=format_)
    bodies = [form(damaged(whole, draw)) for _ in range(CASES_A_FORMAT)]
    found = statuses(server, bodies)
    assert set(found) <= {200, 413, 422}
    assert found.count(422) > CASES_A_FORMAT // 4
    assert "Traceback" not in capfd.readouterr().err


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8-bit RGB with these chunks."""
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", ihdr), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def solid(width: int, height: int, format_: str) -> bytes:
    stream = io.BytesIO()
    Image.new("L" if format_ == "TIFF" else "RGB", (width, height)).save(
        stream, format_, **({"compression": "tiff_lzw"} if format_ == "TIFF" else {})
    )
    return stream.getvalue()


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again: each is a pass over all its pixels."""
    whole = picture(1, 900, 900, "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]


BOMBS = {
    "png of 3.6 gigapixels": png(60_000, 60_000),
    "png of 2**31 pixels a side": png(2**31 - 1, 2**31 - 1),
    "png without a width": png(0, 100),
    "png of a long text": png(99, 99, (b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))),
    "png of a long profile": png(99, 99, (b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000)))),
    "png of a long row": png(99, 99, (b"IDAT", zlib.compress(b"\5" + bytes(200_000_000)))),
    "webp of 4 megapixels": solid(2048, 2048, "WEBP"),
    "tiff of 100 megapixels": solid(10_000, 10_000, "TIFF"),
    "gif of 4 gigapixels": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + bytes(40),
    "jpeg of 4 gigapixels": picture(1, format_="JPEG").replace(
        struct.pack(">HH", 50, 60), struct.pack(">HH", 65_500, 65_500)
    ),
    "jpeg of 2,000 scans": scans(2000),
    "ppm of 10**16 pixels": b"P6 99999999 99999999 255\n",
    "bmp of 2**31 rows": picture(1, format_="BMP").replace(
        struct.pack("<ii", 60, 50), struct.pack("<ii", 60, -(2**31))
    ),
    "elongated": picture(1, 1000, 20),
    "nothing": b"",
    "a zero": b"\0",
    "zeros": bytes(100_000),
    "text": b"bird.jpg",
    "html": b"<!doctype html><title>404</title>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%id) (r) file\n",
    "pdf": b"%PDF-1.4\n",
    "zip": b"PK\3\4" + bytes(100),
    "gzip": zlib.compress(bytes(10_000_000)),
    "python": b"cos\nsystem\n(S'id'\ntR.",
    "floating-point pixels": picture(1, format_="TIFF")[:100],
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name: str, server: Running) -> None:
    assert statuses(server, [form(BOMBS[name])]) in ([413], [422])


# Forms

DISPOSITION = b'Content-Disposition: form-data; name="pictures"; filename="a.png"'
PART = b"--X\r\n" + DISPOSITION + b"\r\n\r\n"
FORMS = {
    "no part": b"--X--\r\n",
    "nothing": b"",
    "no end": PART + picture(1),
    "another boundary": form(picture(1)).replace(b"--X", b"--Y"),
    "zeros": bytes(100_000),
    "10,000 fields": b"--X\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n" * 10_000 + b"--X--\r\n",
    "10,000 files": form(*[b"x"] * 10_000),
    "10,000 empty parts": b"--X\r\n\r\n\r\n" * 10_000 + b"--X--\r\n",
    "a long head": b"--X\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
    "10,000 heads": b"--X\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    "no name": b"--X\r\nContent-Disposition: form-data\r\n\r\nx\r\n--X--\r\n",
    "no disposition": b"--X\r\nContent-Type: image/png\r\n\r\nx\r\n--X--\r\n",
    "a head without a colon": b"--X\r\nContent-Disposition\r\n\r\nx\r\n--X--\r\n",
    "a form in a form": form(form(picture(1))),
    "line ends": b"\r\n" * 1_000_000,
    "half boundaries": PART + b"\r\n--" * 500_000,
    "almost boundaries": PART + b"\r\n--Y" * 500_000,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_hostile_form_is_refused(name: str, server: Running, capfd: pytest.CaptureFixture[str]) -> None:
    assert statuses(server, [FORMS[name]]) in ([400], [413], [422])
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        b"../../../../etc/passwd",
        b"/etc/passwd",
        b"C:\\\\boot.ini",
        b"..%2f..%2fa",
        b"a\0.png",
        b"",
        b"a" * 4000,
        b"\xff\xfe",
        b"$(id).png",
        b"<script>alert(1)</script>",
        b"\xf0\x9f\x90\xa6.png",
    ],
)
@pytest.mark.parametrize("charset", [b"", b"; charset=unicode_escape", b"; charset=utf-7", b"; charset=hex"])
def test_a_hostile_name_changes_nothing(
    name: bytes, charset: bytes, server: Running, export: Path, tmp_path: Path
) -> None:
    body = form(picture(1), name=name)
    with connection(server.port) as one:
        one.sendall(head(len(body)).replace(b"boundary=X", b"boundary=X" + charset) + body)
        status, text = answer(one)
    assert status == 200
    probability = expected(export, picture(1), tmp_path)["classes"][0]["probability"]
    assert f'"probability":{probability}' in text.decode()


@pytest.mark.parametrize("charset", [b"idna", b"undefined", b"punycode", b"rot13", b"a" * 999])
def test_a_hostile_charset_is_no_failure(charset: bytes, server: Running) -> None:
    body = form(picture(1), name=b"a\xff..\xc3" + b"b" * 70)
    with connection(server.port) as one:
        one.sendall(head(len(body)).replace(b"boundary=X", b"boundary=X; charset=" + charset) + body)
        assert answer(one)[0] in (200, 400, 422)


# Requests

BODY = form(picture(1))
REQUESTS = {
    "no request": b"\r\n\r\n\r\n",
    "noise": random.Random(0).randbytes(1000) + b"\r\n\r\n",
    "a hello of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
    "HTTP 9": b"GET /nothing HTTP/9.9\r\nHost: here\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "a long path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: here\r\n\r\n",
    "a long head": b"GET /nothing HTTP/1.1\r\nHost: here\r\nA: " + b"a" * 200_000 + b"\r\n\r\n",
    "10,000 heads": b"GET /nothing HTTP/1.1\r\nHost: here\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    "a path of another place": b"GET /../../../etc/passwd HTTP/1.1\r\nHost: here\r\n\r\n",
    "a path of bytes": b"GET /%ff%00 HTTP/1.1\r\nHost: here\r\n\r\n",
    "a length below zero": head(5).replace(b": 5", b": -5") + BODY,
    "a length of letters": head(5).replace(b": 5", b": many") + BODY,
    "two lengths": head(5, b"Content-Length: 7") + BODY,
    "a length of many digits": head(5).replace(b": 5", b": " + b"9" * 5000) + BODY,
    "a chunk of another kind": head(None) + b"zz\r\n",
    "no boundary": head(len(BODY)).replace(b"; boundary=X", b"") + BODY,
    "an empty boundary": head(len(BODY)).replace(b"boundary=X", b"boundary=") + BODY,
    "a long boundary": head(len(BODY)).replace(b"boundary=X", b"boundary=" + b"X" * 9000) + BODY,
    "no content type": b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\nabc",
    "another method": head(len(BODY)).replace(b"POST", b"PUT") + BODY,
    "a method of letters": head(len(BODY)).replace(b"POST", b"BIRD") + BODY,
    "a wish to switch": b"GET /nothing HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "a proxy's request": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "a gigabyte": head(10**9) + bytes(100_000),
    "a gigabyte that is waited for": head(10**9, b"Expect: 100-continue"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_hostile_request_is_refused(name: str, server: Running, capfd: pytest.CaptureFixture[str]) -> None:
    status, text = said(server, REQUESTS[name])
    cut = status == 0 and len(REQUESTS[name]) > 100_000  # nobody reads what is left of it
    assert cut or 400 <= status < 500, (status, text)
    assert b"Traceback" not in text
    assert "Traceback" not in capfd.readouterr().err
