"""Each path answers, and a picture's answer is that of predict.py, to the bit, however many are asked at once."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pipeline.common import files
from pipeline.data.pictures import FORMATS
from pipeline.export.standalone import Exported, crop_of
from pipeline.serving.limits import Limits
from tests.helpers import serving
from tests.helpers.serving import HeldModel, Running, expected, picture, running, sent, small_export


@pytest.fixture(scope="module")
def server(export: Path) -> Iterator[Running]:
    with running(HeldModel(export)) as one:
        yield one


def test_a_picture_is_answered_as_predict_py_answers_it(
    server: Running, export: Path, tmp_path: Path
) -> None:
    content = picture(1)
    answered = httpx.post(f"{server.url}/predict", files=sent(content))
    assert answered.status_code == 200
    assert answered.json() == {
        "model": {"run": "small-0", "checkpoint_sha256": "0" * 64},
        "calibrated": True,
        "pictures": [{"image": "a.png", **expected(export, content, tmp_path)}],
    }
    assert len(answered.json()["pictures"][0]["classes"]) == serving.CLASSES


@pytest.mark.parametrize(
    ("format_", "how"), [("JPEG", {"quality": 80}), ("WEBP", {}), ("TIFF", {}), ("GIF", {}), ("BMP", {})]
)
def test_every_format_has_the_pixels_of_predict_py(
    format_: str, how: dict[str, Any], server: Running, export: Path, tmp_path: Path
) -> None:
    content = picture(2, 700, 500, format_, **how)
    answered = httpx.post(f"{server.url}/predict", files=sent(content, name="b"))
    assert answered.json()["pictures"] == [{"image": "b", **expected(export, content, tmp_path)}]


def test_top_is_the_number_of_classes(server: Running) -> None:
    def of(top: object) -> httpx.Response:
        return httpx.post(f"{server.url}/predict", params={"top": str(top)}, files=sent(picture(1)))

    assert len(of(2).json()["pictures"][0]["classes"]) == 2
    for wrong in (0, -1, "many", 10**9):
        assert of(wrong).status_code == 422
        assert of(wrong).json()["error"].startswith("top: ")


def test_heat_maps_are_those_of_the_graph_where_they_are_asked_for(
    server: Running, export: Path, tmp_path: Path
) -> None:
    content = picture(5)
    (tmp_path / "a.png").write_bytes(content)
    model = Exported(export)
    maps = model.outputs(crop_of(tmp_path / "a.png", model.facts["preprocessing"]))["heat_maps"]

    def of(top: int, wanted: str) -> dict[str, Any]:
        parameters = {"top": top, "heat_maps": wanted}
        said = httpx.post(f"{server.url}/predict", params=parameters, files=sent(content))
        found: dict[str, Any] = said.json()["pictures"][0]
        return found

    found = of(3, "true")["heat_maps"]
    assert len(found) == 3 and maps.max() > 100
    np.testing.assert_allclose(found, maps[:3], atol=5.001e-4)
    assert found != maps[:3].tolist()  # three digits are enough
    assert "heat_maps" not in of(3, "false")


def test_a_request_has_many_pictures_and_a_bad_one_is_its_own_fault(
    server: Running, export: Path, tmp_path: Path
) -> None:
    good, other = picture(3), picture(4)
    pictures = httpx.post(f"{server.url}/predict", files=sent(good, b"no picture", other)).json()["pictures"]
    assert [pictures[0], pictures[2]] == [
        {"image": "a.png", **expected(export, content, tmp_path)} for content in (good, other)
    ]
    assert pictures[1] == {"image": "a.png", "error": "not a picture, or of an unknown format"}


def test_a_picture_of_a_phone_is_refused_by_name(server: Running, export: Path) -> None:
    contents = [
        b"\0\0\0\x18ftyp" + brands + bytes(40)
        for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1miaf", b"hevc\0\0\0\0msf1hevc")
    ]
    if "HEIF" in FORMATS:
        contents.append(picture(1, format_="HEIF"))
    for content in contents:
        answered = httpx.post(f"{server.url}/predict", files=sent(content))
        words = "no picture: HEIC, which this server does not read; save it as JPEG"
        assert (answered.status_code, answered.json()["error"]) == (422, words)
    damaged = b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(40)
    assert "HEIC" not in httpx.post(f"{server.url}/predict", files=sent(damaged)).text


@pytest.mark.skipif("AVIF" not in FORMATS, reason="Pillow reads no AVIF here")
def test_avif_is_no_picture_of_a_phone(server: Running, export: Path, tmp_path: Path) -> None:
    content = picture(6, 90, 70, "AVIF")
    answered = httpx.post(f"{server.url}/predict", files=sent(content))
    assert answered.json()["pictures"] == [{"image": "a.png", **expected(export, content, tmp_path)}]


def test_a_request_without_any_readable_picture_is_refused_with_each_reason(server: Running) -> None:
    answered = httpx.post(f"{server.url}/predict", files=sent(b"", b"no picture"))
    assert answered.status_code == 422
    assert answered.json() == {
        "error": "no picture: an empty file",
        "pictures": [
            {"image": "a.png", "error": "an empty file"},
            {"image": "a.png", "error": "not a picture, or of an unknown format"},
        ],
    }


def test_an_answer_does_not_depend_on_what_else_is_asked(export: Path, tmp_path: Path) -> None:
    contents = [picture(n) for n in range(24)]
    wanted = [expected(export, content, tmp_path) for content in contents]
    model = HeldModel(export)
    with running(model, threads=1) as server:
        model.may_answer.clear()
        with ThreadPoolExecutor(24) as clients:
            asked = [
                clients.submit(httpx.post, f"{server.url}/predict", files=sent(content), timeout=60)
                for content in contents
            ]
            while server.service.load.pictures < 24:
                model.asked.wait(0.01)
            model.may_answer.set()
            found = [one.result().json()["pictures"][0] for one in asked]
    assert found == [{"image": "a.png", **one} for one in wanted]
    assert max(model.sizes) == 8, "nothing was asked together"


def test_pictures_of_none_of_the_classes_are_said_and_counted(export: Path, tmp_path: Path) -> None:
    contents = [picture(n) for n in range(30)]
    none = [expected(export, content, tmp_path)["none_of_these"] for content in contents]
    assert 0 < sum(none) < 30
    with running(HeldModel(export)) as server:
        for start in (0, 15):
            httpx.post(f"{server.url}/predict", files=sent(*contents[start : start + 15]))
        httpx.post(f"{server.url}/predict", files=sent(b"x"))
        text = httpx.get(f"{server.url}/metrics").text
    assert f'plumage_pictures_total{{outcome="none_of_these"}} {sum(none)}.0' in text
    assert f'plumage_pictures_total{{outcome="answered"}} {30 - sum(none)}.0' in text
    assert 'plumage_pictures_total{outcome="refused"} 1.0' in text
    assert 'plumage_requests_total{path="/predict",status="200"} 2.0' in text
    assert 'plumage_requests_total{path="/predict",status="422"} 1.0' in text
    assert 'plumage_model_info{checkpoint_sha256="' in text
    assert "process_resident_memory_bytes" in text


def test_the_model_says_what_it_is(server: Running, export: Path) -> None:
    said = httpx.get(f"{server.url}/model").json()
    assert said["classes"] == [f"{n:03}.Bird {n}" for n in range(serving.CLASSES)]
    assert said["onnx_sha256"] == files.digest_of_file(export / "model.onnx")
    assert said["origin"]["checkpoint_sha256"] == "0" * 64
    assert said["weights"]["licence"] == "mit"
    assert [(one["split"], one["top1"]["value"]) for one in said["numbers"]] == [("test", 0.5)]
    assert said["proof"] == {"exporter": "drawn", "compared": {}}
    assert said["limits"]["files"] == Limits().files


def test_it_is_healthy_and_ready(server: Running) -> None:
    for path in ("healthz", "readyz"):
        answered = httpx.get(f"{server.url}/{path}")
        assert (answered.status_code, answered.json()) == (200, {"status": "ok"})


def test_the_page_is_there_and_asks_nobody_else(server: Running) -> None:
    page = httpx.get(server.url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert page.text == server.service.model.page
    assert "Bird 3" in page.text
    assert "connect-src &#39;self&#39;" in page.text


def test_what_is_not_there_is_refused_in_the_same_form(server: Running) -> None:
    assert httpx.get(f"{server.url}/etc/passwd").json() == {"error": "Not Found"}
    assert httpx.get(f"{server.url}/predict").status_code == 405
    assert httpx.get(f"{server.url}/docs").status_code == 404


def test_no_answer_and_no_line_of_the_log_names_a_path_of_this_machine(
    export: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(HeldModel(export)) as server:
        posted = [
            httpx.post(f"{server.url}/predict", files=sent(content, name="../../secret.png"))
            for content in (picture(1), b"no picture", picture(1)[:200], b"", b"II*\0" + bytes(40))
        ]
        got = [httpx.get(f"{server.url}/{path}") for path in ("", "model", "metrics", "openapi.json", "x")]
    answers = "".join(one.text for one in posted + got)
    for leak in (str(export), str(Path.home()), "BytesIO", "0x", "site-packages", "Traceback"):
        assert leak not in answers
    log = capfd.readouterr().err
    assert '"path": "/predict"' in log
    assert "secret" not in log
    assert str(export) not in log


def test_a_bug_keeps_its_traceback_in_the_log_and_tells_the_client_nothing(
    export: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = HeldModel(export)
    with running(model) as server:
        monkeypatch.setattr(model, "facts", {**model.facts, "classes": []})
        failed = httpx.post(f"{server.url}/predict", files=sent(picture(1)))
        monkeypatch.undo()
        assert httpx.post(f"{server.url}/predict", files=sent(picture(1))).status_code == 200
    assert (failed.status_code, failed.json()) == (
        500,
        {"error": "the server failed on this request; its log says why"},
    )
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    [traceback] = [line["traceback"] for line in lines if "traceback" in line]
    assert "IndexError" in traceback


def test_a_failing_model_fails_only_those_who_asked(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HeldModel(export)
    with running(model) as server:
        with monkeypatch.context() as broken:
            broken.setattr(model, "session", None)
            assert httpx.post(f"{server.url}/predict", files=sent(picture(1))).status_code == 500
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert httpx.post(f"{server.url}/predict", files=sent(picture(1))).status_code == 200


def test_without_a_temperature_the_answer_says_that_it_is_not_calibrated(tmp_path: Path) -> None:
    model = HeldModel(small_export(tmp_path / "small"))
    model.facts = {**model.facts, "temperature": None}
    with running(model) as server:
        assert httpx.post(f"{server.url}/predict", files=sent(picture(1))).json()["calibrated"] is False


def test_the_export_may_be_moved_away_while_it_is_served(tmp_path: Path) -> None:
    folder = small_export(tmp_path / "small")
    with running(HeldModel(folder)) as server:
        shutil.rmtree(folder)
        assert httpx.post(f"{server.url}/predict", files=sent(picture(1))).status_code == 200
