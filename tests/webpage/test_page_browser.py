"""The page in a real browser, from a file and without a network: Chromium by playwright; skipped where there is none."""

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from pipeline.export.standalone import Exported, crop_of, stored_size
from pipeline.webpage import page, runtime_files
from tests.helpers.serving import expected, picture, small_export

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
READY = "body[data-state=ready]"
SERVER = "http://page.test/app/"
DROP = """([text, kind]) => {
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const held = new DataTransfer();
  held.items.add(new File([bytes], "mine.png", { type: "image/png" }));
  const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: held, bubbles: true })
    : new ClipboardEvent("paste", { clipboardData: held, bubbles: true });
  document.body.dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, engine: runtime_files.Engine) -> Path:
    """An export of a small model with its page, whose classes have look-alikes, pictures and hostile names."""
    folder = small_export(tmp_path_factory.mktemp("page") / "export")
    shown = "data:image/png;base64," + base64.b64encode(picture(9)).decode()
    alike = [
        [{"label": (n + 1) % 4, "attributes": [{"name": "bill: <b>", "a": 90.0, "b": 4.0}]}] for n in range(4)
    ]
    (folder / page.COMPANIONS).write_text(
        json.dumps({"look_alikes": alike, "pictures": [[shown, shown]] * 4})
    )
    write(folder, engine)
    return folder


def write(folder: Path, engine: runtime_files.Engine) -> Path:
    path = folder / "page.html"
    path.write_text(page.offline_page(folder, "fp32", engine), encoding="utf-8")
    return path


class Opened:
    """A page, and what it has said and asked for since it was opened."""

    def __init__(
        self, browser: Any, address: str, route: Callable[[Any], None] | None = None, **options: Any
    ) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda made: self.asked.append(made.url))
        self.context.set_offline(route is None)
        if route is not None:
            self.page.route("**/*", route)
        self.page.goto(address)

    def answer(self, content: bytes, name: str = "mine.png") -> str:
        """The words of the answer to a picture."""
        count = self.page.locator("#results > *").count()
        self.page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
        self.page.wait_for_function("n => document.querySelectorAll('#results > *').length > n", arg=count)
        return str(self.page.locator("#results > *").first.inner_text())


@pytest.fixture(scope="module")
def desktop(folder: Path, chromium: Any) -> Iterator[Opened]:
    """The page, ready, for several tests: to start it takes seconds."""
    opened = Opened(chromium, (folder / "page.html").as_uri())
    opened.page.wait_for_selector(READY)
    yield opened
    opened.context.close()


@pytest.fixture
def opened(desktop: Opened, folder: Path) -> Iterator[Opened]:
    """The page without answers; at the end it may have complained of nothing, and asked for nothing but itself."""
    desktop.page.evaluate(
        "document.getElementById('results').replaceChildren(); document.activeElement.blur()"
    )
    yield desktop
    check_silence(desktop, folder)


def check_silence(opened: Opened, folder: Path) -> None:
    assert opened.said == []
    others = [url for url in opened.asked if not url.startswith(("blob:", "data:"))]
    assert others == [(folder / "page.html").as_uri()]


def test_it_verifies_the_golden_pictures_and_says_so(opened: Opened) -> None:
    state = opened.page.locator("#state")
    assert state.get_attribute("role") == "status"
    assert (
        "Verified: all 5 golden pictures have the trained model's pixels and logits here"
        in state.inner_text()
    )


def test_its_answer_is_that_of_predict(opened: Opened, folder: Path, tmp_path: Path) -> None:
    for seed in range(3):
        content = picture(seed, 300, 220, "JPEG", quality=90)
        wanted = expected(folder, content, tmp_path, 4)
        found = opened.page.evaluate(
            "async text => { const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));"
            " const found = await plumage.engine.answer(new File([bytes], 'a'), 4);"
            " const { crop, logits, heat_maps, ...said } = found; return said; }",
            base64.b64encode(content).decode(),
        )
        assert found.pop("exact") is True
        assert [one["class"] for one in found["classes"]] == [one["class"] for one in wanted["classes"]]
        for one, other in zip(found.pop("classes"), wanted.pop("classes"), strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert found == wanted
        best = wanted.get("none_of_these")
        opened.answer(content)
        headline = opened.page.locator("h2").first.inner_text()
        assert headline.startswith("None of these" if best else "Bird")


def opacity(opened: Opened) -> np.ndarray:
    """Of the heat map that is shown, 0..255."""
    read = (
        "const copy = new OffscreenCanvas(2, 2).getContext('2d', { willReadFrequently: true });"
        " copy.drawImage(document.querySelector('.heat'), 0, 0); return [...copy.getImageData(0, 0, 2, 2).data];"
    )
    return np.array(opened.page.evaluate(f"(() => {{ {read} }})()")).reshape(2, 2, 4)[..., 3]


def test_the_heat_map_of_each_class_is_that_of_the_graph_and_said_in_words(
    opened: Opened, folder: Path, tmp_path: Path
) -> None:
    content = picture(7, 300, 220, "JPEG", quality=90)
    (tmp_path / "a.jpg").write_bytes(content)
    model = Exported(folder)
    maps = model.outputs(crop_of(tmp_path / "a.jpg", model.facts["preprocessing"]))["heat_maps"]
    opened.answer(content)
    rows = opened.page.locator(".bars button")
    names = rows.locator(".bar-name").all_inner_texts()
    for place in (0, 1, 2):
        rows.nth(place).click()
        assert [rows.nth(n).get_attribute("aria-pressed") for n in range(4)] == [
            str(n == place).lower() for n in range(4)
        ]
        np.testing.assert_allclose(opacity(opened), 0.75 * 255 * maps[place] / maps[place].max(), atol=1)
        assert opened.page.inner_text(".asked p").startswith(
            f"Warm colours: what speaks for {names[place]}, most of it "
        )
    assert opened.page.locator(".seen.heated").count() == 1
    button = opened.page.get_by_role("button", name="Heat map")
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert opened.page.locator(".seen.heated").count() == 0
    assert opened.page.inner_text(".asked p") == ""


def test_the_place_of_the_heat_is_its_middle(opened: Opened) -> None:
    def words(grid: list[list[float]]) -> str:
        return str(opened.page.evaluate("grid => plumage.heatInWords(grid, 'Owl')", grid))

    assert words([[1, 0], [0, 0]]).endswith("Owl, most of it at the upper left.")
    assert words([[0, 0], [1, 1]]).endswith("at the bottom.")
    assert words([[1, 1], [1, 1]]).endswith("around the centre.")
    assert words([[0, 0], [0, 0]]) == "Nothing in the picture speaks for Owl."


def test_an_export_without_heat_maps_has_its_page(
    tmp_path: Path, chromium: Any, engine: runtime_files.Engine
) -> None:
    """As those of earlier versions, and of vision transformers."""
    folder = small_export(tmp_path / "export")
    model = onnx.load(folder / "model.onnx")
    del model.graph.output[-1]
    onnx.save(model, folder / "model.onnx")
    opened = Opened(chromium, write(folder, engine).as_uri())
    opened.page.wait_for_selector(READY)
    assert "Bird" in opened.answer(picture(8))
    assert opened.page.locator(".asked > canvas").count() == 1
    assert opened.page.locator(".heat, .bars button").count() == 0
    assert opened.said == []
    opened.context.close()


def test_what_only_the_browser_decodes_is_said(opened: Opened, folder: Path, tmp_path: Path) -> None:
    content = picture(1, 200, 160, "WEBP", lossless=True)
    words = opened.answer(content)
    assert "Your browser has decoded this picture" in words
    assert expected(folder, content, tmp_path)["classes"][0]["class"].replace("001.", "")[-6:] in words


def test_a_damaged_file_is_a_sentence_and_the_next_is_answered(opened: Opened) -> None:
    whole = picture(2, 90, 70, "JPEG")
    assert opened.answer(whole[: len(whole) // 2], "half.jpg") == "half.jpg is cut off."
    assert opened.page.locator("#results > [role=alert]").count() == 1
    assert "Bird" in opened.answer(whole)


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(kind: str, opened: Opened) -> None:
    opened.page.evaluate(DROP, [base64.b64encode(picture(3)).decode(), kind])
    opened.page.wait_for_selector(".answer")
    assert opened.page.evaluate("document.activeElement.tagName") == "H2"


def test_the_keyboard_reaches_all_and_the_camera_is_there(opened: Opened) -> None:
    opened.page.locator("h1").click()  # the first focus comes after it
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.textContent") == "Choose a picture"
    with opened.page.expect_file_chooser() as chooser:
        opened.page.keyboard.press("Enter")
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": picture(4)})
    opened.page.wait_for_selector(".answer")
    assert opened.page.locator("#camera").get_attribute("capture") == "environment"
    nameless = (
        "[...document.querySelectorAll('button, input, canvas:not([aria-hidden]), img')]"
        ".filter((one) => !(one.textContent.trim() || one.getAttribute('aria-label') || one.hasAttribute('alt')))"
        ".map((one) => one.outerHTML)"
    )
    assert opened.page.evaluate(nameless) == []


def test_a_phone_needs_no_sideways_scrolling_and_has_large_buttons(folder: Path, chromium: Any) -> None:
    opened = Opened(chromium, (folder / "page.html").as_uri(), **PHONE)
    opened.page.wait_for_selector(READY)
    opened.answer(picture(5))
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.page.get_by_role("button", name="Take a photograph").is_visible()
    heights = "[...document.querySelectorAll('button, summary')].filter((one) => one.offsetParent)"
    assert min(opened.page.evaluate(f"{heights}.map((one) => one.offsetHeight)")) >= 44
    check_silence(opened, folder)
    opened.context.close()


def test_look_alikes_have_pictures_and_attributes_as_text(opened: Opened) -> None:
    words = opened.answer(picture(6))
    best = opened.page.evaluate("document.querySelector('.bar-name').textContent")
    assert f"Similar to {best}" in words
    assert "bill: <b>" in words
    assert opened.page.locator(".pair").first.locator("img").count() == 4


def test_classes_are_found_by_their_names(opened: Opened) -> None:
    opened.page.get_by_text("The 4 classes").click()
    opened.page.get_by_label("Find a class").fill("ird 2")
    assert opened.page.locator("#classes li:visible").all_inner_texts() == ["Bird 2"]


def test_a_model_that_answers_otherwise_does_not_answer(
    tmp_path: Path, chromium: Any, engine: runtime_files.Engine
) -> None:
    folder, other = small_export(tmp_path / "one"), small_export(tmp_path / "other", seed=1)
    shutil.copy(other / "model.onnx", folder / "model.onnx")
    opened = Opened(chromium, write(folder, engine).as_uri())
    opened.page.wait_for_selector("body[data-state=failed]")
    assert (
        "does not answer in this browser as the trained model does"
        in opened.page.locator("#state").inner_text()
    )
    opened.page.locator("#file").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": picture(0)}
    )
    opened.page.wait_for_timeout(300)
    assert opened.page.locator("#results > *").count() == 0
    opened.context.close()


def test_other_pixels_are_said(
    folder: Path, tmp_path: Path, chromium: Any, engine: runtime_files.Engine
) -> None:
    """As where OpenCV's other library has rounded otherwise: the labels decide, and the difference is shown."""
    copy = tmp_path / "export"
    shutil.copytree(folder, copy)
    path = copy / "golden/golden.json"
    golden = json.loads(path.read_text())
    golden["pictures"][0]["crop_sha256"] = "0" * 64
    path.write_text(json.dumps(golden))
    opened = Opened(chromium, write(copy, engine).as_uri())
    opened.page.wait_for_selector(READY)
    assert (
        "5 golden pictures have the trained model's labels here; 4 have all its pixels"
        in opened.page.inner_text("#state")
    )
    opened.context.close()


def server(
    folder: Path, replies: list[tuple[int, dict[str, Any]]], asked: list[Any]
) -> Callable[[Any], None]:
    """What stands for a server of one page, and of some answers."""
    html = page.served_page(folder)

    def answer(route: Any) -> None:
        request = route.request
        if request.url == SERVER:
            route.fulfill(body=html, content_type="text/html; charset=utf-8")
            return
        asked.append(request)
        status, content = replies.pop(0)
        route.fulfill(status=status, json=content, headers={"Retry-After": "2"})

    return answer


def test_the_page_of_a_server_asks_it_and_shows_its_answer(
    folder: Path, chromium: Any, tmp_path: Path
) -> None:
    content = picture(0)
    said = expected(folder, content, tmp_path)
    said["heat_maps"] = [[[0.0, 1.0], [2.0, 4.0]]] * 4
    asked: list[Any] = []
    replies = [
        (401, {"error": "a token"}),
        (200, {"calibrated": True, "pictures": [{"image": "mine.png", **said}]}),
        (503, {"error": "busy"}),
        (
            422,
            {
                "error": "no picture: not a picture",
                "pictures": [{"image": "mine.png", "error": "not a picture"}],
            },
        ),
    ]
    opened = Opened(chromium, SERVER, server(folder, replies, asked))
    opened.page.wait_for_selector(READY)
    opened.page.locator("#file").set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": content}
    )
    opened.page.get_by_label("Token").fill("a secret of this server")
    opened.page.get_by_role("button", name="Send").click()
    opened.page.wait_for_selector(".answer")
    assert "what speaks for" in opened.page.inner_text(".asked")
    given = page.facts_of(folder)["preprocessing"]
    with Image.open(io.BytesIO(content)) as image:
        sides = stored_size(image.size, given)
    style = opened.page.evaluate(
        "(({ width, height }) => [width, height])(document.querySelector('.heat').style)"
    )
    wanted = [100 * given["image_px"] / side for side in sides]
    assert [float(text.removesuffix("%")) for text in style] == pytest.approx(wanted, abs=1e-3)
    shown = opened.page.locator(".bar-name").all_inner_texts()
    assert shown == [one["class"].split(".")[1] for one in said["classes"]]
    assert [request.url for request in asked] == [f"{SERVER}predict?top=5&heat_maps=true"] * 2
    assert [request.headers.get("authorization") for request in asked] == [
        None,
        "Bearer a secret of this server",
    ]
    assert b'name="pictures"; filename="mine.png"' in asked[1].post_data_buffer
    assert opened.answer(content) == "The server is busy; try again in 2 seconds."
    assert opened.answer(b"nothing") == "mine.png not a picture."
    opened.context.close()


def test_the_page_of_a_server_lets_go_of_the_pictures_that_it_no_longer_shows(
    folder: Path, chromium: Any, tmp_path: Path
) -> None:
    content = picture(0)
    said = {"calibrated": True, "pictures": [{"image": "a.png", **expected(folder, content, tmp_path)}]}
    opened = Opened(chromium, SERVER, server(folder, [(200, said)] * 53, []))
    opened.page.wait_for_selector(READY)
    opened.page.evaluate(
        "window.held = new Set(); const [make, free] = [URL.createObjectURL, URL.revokeObjectURL];"
        "URL.createObjectURL = (file) => { const made = make(file); held.add(made); return made; };"
        "URL.revokeObjectURL = (made) => { held.delete(made); free(made); };"
    )
    file = {"name": "a.png", "mimeType": "image/png", "buffer": content}
    for _ in range(53):
        opened.page.locator("#file").set_input_files(file)
        opened.page.wait_for_selector(READY)
    opened.page.wait_for_function("document.querySelectorAll('.answer').length === 50 && held.size === 50")
    opened.context.close()


def test_a_set_is_said_in_words(opened: Opened) -> None:
    names = opened.page.evaluate("plumage.inWords(['A', 'B', 'C'], { coverage: 0.9 })")
    assert names == "One of these three, right nine times in ten: A, B or C."
    assert opened.page.evaluate("plumage.inWords(['A'], { coverage: 0.95 })") == (
        "Only A is likely enough; such an answer is right with 95\N{NO-BREAK SPACE}%."
    )


def test_a_large_picture_is_answered_from_its_scaled_decoding(
    opened: Opened, folder: Path, tmp_path: Path
) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((1250, 1000), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
    said = expected(folder, stream.getvalue(), tmp_path)
    words = opened.answer(stream.getvalue())
    assert said["classes"][0]["class"].split(".")[1] in words
