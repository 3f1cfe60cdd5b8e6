"""The page as a folder of a web server: stored at the first visit, replaced as a whole, asking nobody else."""

import base64
import functools
import html
import http.server
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.export.standalone import Exported, crop_of
from pipeline.webpage import folder_page
from pipeline.webpage.runtime_files import Engine
from tests.helpers.serving import picture, small_export

WAIT_S = 60.0
STORED = "body[data-stored=yes]"
LOGITS = """async (text) => {
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  return Array.from((await plumage.engine.answer(new File([bytes], "a"), 4)).logits);
}"""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Path:
    return version(tmp_path_factory.mktemp("first"), 0, engine)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Path:
    return version(tmp_path_factory.mktemp("second"), 1, engine)


def version(tmp: Path, seed: int, engine: Engine) -> Path:
    """The page of another model each; its run is called small-SEED."""
    folder_page.write(tmp / "page", small_export(tmp / "export", seed), "fp32", engine)
    return tmp / "page"


class Site:
    """A web server of a folder, which has the page below a path. missed: paths that it did not have."""

    def __init__(self, root: Path) -> None:
        self.page = root / "birds"
        self.missed = missed = list[str]()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Stay quiet."""

            def send_error(self, *arguments: Any) -> None:
                missed.append(self.path)
                super().send_error(*arguments)

        handler = functools.partial(Handler, directory=str(root))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.origin = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, folder: Path) -> None:
        if self.page.exists():
            shutil.rmtree(self.page)
        shutil.copytree(folder, self.page)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stop()


class Visitor:
    """A browser's profile, with what its pages have asked for."""

    def __init__(self, browser: Any, site: Site) -> None:
        self.context, self.address = browser.new_context(), f"{site.origin}birds/"
        self.asked: list[str] = []
        self.context.on("request", lambda made: self.asked.append(made.url))

    def visit(self, name: str = "", until: str = STORED) -> Any:
        page = self.context.new_page()
        page.goto(self.address + name)
        page.wait_for_selector(until)
        return page

    def run_shown(self, page: Any) -> str:
        return str(page.inner_text(".kicker")).lower()


@pytest.fixture
def visitor(chromium: Any, site: Site) -> Iterator[Visitor]:
    visitor = Visitor(chromium, site)
    yield visitor
    visitor.context.close()
    assert {url for url in visitor.asked if not url.startswith(("blob:", site.origin))} == set()


def test_after_one_visit_it_answers_without_server_and_network(
    site: Site, visitor: Visitor, first: Path, tmp_path: Path
) -> None:
    site.put(first)
    page = visitor.visit()
    assert page.inner_text("#state").endswith(
        "Stored on this device: from now on it opens without a network."
    )
    page.close()
    site.stop()
    visitor.context.set_offline(True)
    content = picture(1, 300, 220, "JPEG", quality=90)
    (tmp_path / "a.jpg").write_bytes(content)
    model = Exported(first.parent / "export")
    wanted = model.outputs(crop_of(tmp_path / "a.jpg", model.facts["preprocessing"]))["logits"]
    for name in ("", "index.html", "?from=home"):
        page = visitor.visit(name)
        found = page.evaluate(LOGITS, base64.b64encode(content).decode())
        np.testing.assert_allclose(found, wanted, atol=1e-5 * abs(wanted).max())


def wait_until(page: Any, expression: str) -> None:
    """Ask a page again and again; what it says may be a promise."""
    deadline = time.monotonic() + WAIT_S
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


STORES_SECOND = """async () => (await caches.keys()).length === 1
  && (await (await caches.match("./")).text()).includes("small-1")"""


def test_another_version_is_taken_as_a_whole_at_the_next_visit_but_one(
    site: Site, visitor: Visitor, first: Path, second: Path
) -> None:
    site.put(first)
    visitor.visit().close()
    site.put(second)
    page = visitor.visit()
    assert visitor.run_shown(page) == "small-0"  # from the store, while the other one is fetched
    wait_until(page, STORES_SECOND)
    assert visitor.run_shown(visitor.visit()) == "small-1"


def test_half_a_version_is_not_taken(site: Site, visitor: Visitor, first: Path, second: Path) -> None:
    site.put(first)
    visitor.visit().close()
    site.put(second)
    (model,) = site.page.glob("model-*")
    hidden = model.rename(model.with_name("not-there-yet"))
    page = visitor.visit()
    deadline = time.monotonic() + WAIT_S
    while not any(model.name in path for path in site.missed):
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)
    page.wait_for_timeout(200)
    assert visitor.run_shown(visitor.visit()) == "small-0"
    hidden.rename(model)
    wait_until(visitor.visit(), STORES_SECOND)
    assert visitor.run_shown(visitor.visit()) == "small-1"


def test_from_a_file_it_names_the_page_that_opens_from_one(chromium: Any, first: Path) -> None:
    page = chromium.new_page()
    page.goto((first / "index.html").as_uri())
    page.wait_for_selector("body[data-state=failed]")
    assert "it needs a web server; the page that `plumage page` writes without --folder" in page.inner_text(
        "#state"
    )
    page.close()


def test_the_folder_is_whole_and_names_no_other_address(tmp_path: Path) -> None:
    export, engine = small_export(tmp_path / "export"), Engine(b"export const a = 1;", bytes(range(256)))
    (export / "page").mkdir()
    (export / "page/of an earlier version").touch()
    size_bytes = folder_page.write(export / "page", export, "fp32", engine)
    files = {path.name: path.read_bytes() for path in (export / "page").iterdir()}
    assert size_bytes == sum(map(len, files.values()))
    worker, text = files["service-worker.js"].decode(), html.unescape(files["index.html"].decode())
    (stored,) = re.findall(r"const FILES = (.*);", worker)
    assert sorted(json.loads(stored)) == sorted({"./", *files} - {"service-worker.js", "index.html"})
    (model,) = (name for name in files if name.startswith("model-"))
    assert files[model] == (export / "model.onnx").read_bytes()
    assert {"connect-src 'self'", "worker-src 'self'", "manifest-src 'self'"} <= set(
        re.findall(r"[a-z]+-src 'self'", text)
    )
    assert set(re.findall(r"https?://[^\s\"']+", text + worker)) <= {"http://ns.adobe.com/xap/1.0/"}
    manifest = json.loads(files["manifest.webmanifest"])
    assert (manifest["start_url"], manifest["display"]) == ("./", "standalone")
    for one in manifest["icons"]:
        with Image.open(export / "page" / one["src"]) as icon:
            assert (icon.format, f"{icon.width}x{icon.height}") == ("PNG", one["sizes"])
    before = worker
    folder_page.write(export / "page", export, "fp32", Engine(engine.module, b"other"))
    after = (export / "page/service-worker.js").read_text()
    assert re.findall(r"VERSION = .*", after) != re.findall(r"VERSION = .*", before)
