"""The file of the page: whole, of a policy that lets nothing out, and without a class name that is markup."""

import base64
import gzip
import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from pipeline.cli.main import run
from pipeline.common.errors import DataError
from pipeline.data import prepare
from pipeline.data.transforms import CentreCrop
from pipeline.webpage import page, runtime_files, write_page
from pipeline.webpage.companions import companions
from pipeline.webpage.runtime_files import Engine
from tests.helpers import tiny, web_pixels
from tests.helpers.serving import small_export

HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "<!--", "\u2028'\"&amp;"]
MODULE, WASM = b"export const a = 1;", bytes(range(256)) * 40


class Parsed(HTMLParser):
    """The elements of a page: its scripts and styles by their attributes, its policy, and every tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[tuple[str, dict[str, str | None], str]] = [("", {}, "")]
        self.policy = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(given["content"])
        self.texts.append((tag, given, ""))

    def handle_endtag(self, tag: str) -> None:
        self.texts.append(("", {"after": tag}, ""))

    def handle_data(self, data: str) -> None:
        tag, given, text = self.texts[-1]
        self.texts[-1] = (tag, given, text + data)

    def text_of(self, tag: str, name: str | None = None) -> str:
        (text,) = [
            text
            for found, given, text in self.texts
            if found == tag and given.get("id") == name and "src" not in given
        ]
        return text


def with_names(folder: Path, names: list[str]) -> Path:
    """Another export whose classes have other names."""
    small_export(folder)
    path = folder / "export.json"
    content = json.loads(path.read_text())
    content["metadata"]["classes"] = names
    content["metadata"]["origin"]["run"] = names[0]
    path.write_text(json.dumps(content))
    return folder


def digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


@pytest.mark.parametrize("served", [False, True])
def test_the_policy_allows_this_script_and_this_style_and_nothing_else(served: bool, tmp_path: Path) -> None:
    folder = small_export(tmp_path / "export")
    html = page.served_page(folder) if served else page.offline_page(folder, "fp32", Engine(MODULE, WASM))
    parsed = Parsed(html)
    code = digest(parsed.text_of("script")) + ("" if served else " blob: 'wasm-unsafe-eval'")
    assert dict(part.split(" ", 1) for part in parsed.policy.split("; ")) == {
        "default-src": "'none'",
        "script-src": code,
        "style-src": digest(parsed.text_of("style")),
        "img-src": "data: blob:",
        "connect-src": "'self'" if served else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert set(re.findall(r"https?://[^\s\"']+", html)) <= {
        "http://ns.adobe.com/xap/1.0/"
    }  # the name of a format
    assert not re.search(r"\s(src|href|on\w+|style)=", html)


def test_the_page_has_all_parts_and_is_the_same_each_time(tmp_path: Path) -> None:
    folder = small_export(tmp_path / "export")
    html = page.offline_page(folder, "fp32", Engine(MODULE, WASM))
    parsed = Parsed(html)
    parts = {"engine-module": MODULE, "engine-wasm": WASM, "model": (folder / "model.onnx").read_bytes()}
    for name, content in parts.items():
        assert gzip.decompress(base64.b64decode(parsed.text_of("script", name))) == content
    values = json.loads(parsed.text_of("script", "values"))
    golden = json.loads((folder / "golden/golden.json").read_text())
    for shown, wanted in zip(values["golden"]["pictures"], golden["pictures"], strict=True):
        assert base64.b64decode(shown.pop("content")) == (folder / "golden" / wanted["file"]).read_bytes()
        assert shown == wanted
    assert values["classes"] == ["Bird 0", "Bird 1", "Bird 2", "Bird 3"]
    assert values["unknown"] == page.facts_of(folder)["unknown"]
    assert page.offline_page(folder, "fp32", Engine(MODULE, WASM)) == html


def test_the_page_says_what_was_measured_of_the_model(tmp_path: Path) -> None:
    html = page.served_page(small_export(tmp_path / "export"))
    assert "<dt>Right of test</dt><dd>50.0 % (20.0 to 80.0, 95 %) of 8 pictures</dd>" in html


SHOWN = """
const [made, freed, shown] = [[], [], []];
globalThis.URL = { createObjectURL: () => `blob:${made.push(1)}`, revokeObjectURL: (address) => freed.push(address) };
const view = (source) => {
  const one = { focus() {}, scrollIntoView() {}, remove: () => shown.splice(shown.indexOf(one), 1) };
  return Object.assign(one, { querySelector: () => one, querySelectorAll: () => source ? [{ src: source }] : [] });
};
const list = { prepend: (one) => shown.unshift(one), children: shown, setAttribute() {} };
for (const name of ["lastChild", "lastElementChild"]) Object.defineProperty(list, name, { get: () => shown.at(-1) });
const input = { addEventListener() {}, append() {}, textContent: JSON.stringify({ classes: [], pictures: [] }) };
globalThis.document = {
  getElementById: (name) => name === "results" ? list : input,
  querySelectorAll: () => [], addEventListener() {}, body: { dataset: {} },
};
globalThis.window = {};
globalThis.requestAnimationFrame = (then) => then();
const setInWords = null, heatInWords = null;
const element = (name, { src }) => view(src);
const answerView = (answer, preview) => view(preview.querySelectorAll()[0].src);
class Engine {
  start() { return { whole: true, text: "" }; }
  answer(file) { if (file.bad) throw new Error("is bad"); return {}; }
}
"""


@pytest.mark.skipif(web_pixels.NODE is None, reason="no node here: apt-get install nodejs")
def test_a_picture_that_is_no_longer_shown_is_let_go(tmp_path: Path) -> None:
    script = resources.files("pipeline.webpage").joinpath("assets/page.js").read_text(encoding="utf-8")
    asked = (
        "await take(Array.from({ length: 53 }, () => ({ name: 'a' })));"
        "await take(Array.from({ length: 2 }, () => ({ name: 'b', bad: true })));"
        "console.log(JSON.stringify({ made: made.length, freed, shown: shown.length }));"
    )
    words = [str(web_pixels.NODE), "--input-type=module", "--eval", SHOWN + script + asked]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == {"made": 53, "freed": [f"blob:{n}" for n in range(1, 6)], "shown": 50}


def test_a_class_name_is_never_markup(tmp_path: Path) -> None:
    plain = Parsed(page.served_page(small_export(tmp_path / "plain")))
    hostile = Parsed(page.served_page(with_names(tmp_path / "hostile", HOSTILE)))
    assert hostile.tags == plain.tags
    assert json.loads(hostile.text_of("script", "values"))["names"] == HOSTILE


@pytest.fixture
def exported(birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory with an export of six drawn classes, by a graph of which the answer is known."""
    config = tiny.config(tmp_path)
    names = prepare.load(config).samples.drop_duplicates("label").sort_values("label")["class_name"].tolist()
    folder = with_names(config.run_dir / "export", names)
    drawn = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, 32, 32])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6])
        for name in ("logits", "probabilities")
    ]
    constants = [
        numpy_helper.from_array(drawn / 20, "weights"),
        numpy_helper.from_array(np.array([2, 3]), "axes"),
    ]
    graph = helper.make_graph(nodes, "small", [images], outputs, constants)
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        folder / "model.onnx",
    )
    config.run_dir.joinpath("config.yaml").write_text(config_text(tmp_path))
    monkeypatch.setattr(runtime_files, "engine", lambda: Engine(MODULE, WASM))
    return config.run_dir


def config_text(tmp: Path) -> str:
    return json.dumps(tiny.config(tmp).model_dump(mode="json"))


def test_look_alikes_and_pictures_are_of_validation_images(exported: Path, tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    data, crop = prepare.load(config), CentreCrop(config.data)
    names = page.facts_of(exported / "export")["classes"]
    found = companions(config, exported / "export", {"classes": names}, pictures=True)
    weights = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32) / 20
    mean = np.zeros((6, 6))
    for label in range(6):
        rows = [row for row in data.rows("val") if data.labels[row] == label]
        logits = np.stack([crop(data.store[row], 0, 0).mean(axis=(0, 1)) for row in rows]) @ weights
        highest = logits.max(axis=1, keepdims=True)
        mean[label] = (logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))).mean(
            axis=0
        )
        assert len(found["pictures"][label]) == min(2, len(rows)) > 0
    for label, others in enumerate(found["look_alikes"]):
        shared = mean[label] + mean[:, label]
        shared[label] = -np.inf
        assert [one["label"] for one in others] == np.argsort(-shared)[:2].tolist()
        for one in others:
            differences = [abs(row["a"] - row["b"]) for row in one["attributes"]]
            assert 0 < len(differences) <= 4
            assert differences == sorted(differences, reverse=True)
    assert companions(config, exported / "export", {"classes": names}, pictures=False)["pictures"] == []


def test_the_verb_writes_the_page(exported: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["page", str(exported)]) == 0
    said = json.loads(capsys.readouterr().out)
    path = exported / "export/page.html"
    assert said == {"page": str(path), "size_bytes": path.stat().st_size, "form": "fp32", "pictures": True}
    assert "data:image/webp;base64," in path.read_text()
    assert run(["page", str(exported), "--no-pictures"]) == 0
    assert "data:image" not in path.read_text()
    assert json.loads(capsys.readouterr().out)["pictures"] is False


def test_the_verb_writes_the_page_as_a_folder(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["page", str(exported), "--folder", "--no-pictures"]) == 0
    said = capsys.readouterr()
    path = exported / "export/page"
    size_bytes = sum(one.stat().st_size for one in path.iterdir())
    assert json.loads(said.out) == {
        "page": str(path),
        "size_bytes": size_bytes,
        "form": "fp32",
        "pictures": False,
    }
    assert "put it on a web server, with https" in said.err
    assert not (exported / "export/page.html").exists()


def test_without_the_data_the_page_has_no_pictures_and_says_so(
    exported: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["page", str(exported), f"data.root={tmp_path / 'gone'}"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["pictures"] is False
    assert "no look-alikes and no pictures of the classes" in said.err


def test_the_smaller_form_that_computes_in_fp32_is_taken_unless_told(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported / "export"
    for form in ("fp16", "int8"):
        (folder / f"model.{form}.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-9])
    (folder / "golden/golden.int8.json").write_bytes((folder / "golden/golden.json").read_bytes())
    assert run(["page", str(exported), "--model", "fp16"]) == 2  # without its golden logits it is no form
    assert "--fp16`, which writes it if it passes, or choose from fp32, int8" in capsys.readouterr().err
    assert run(["page", str(exported), "--no-pictures"]) == 0
    (folder / "golden/golden.fp16.json").write_bytes((folder / "golden/golden.json").read_bytes())
    assert run(["page", str(exported), "--no-pictures"]) == 0
    assert run(["page", str(exported), "--no-pictures", "--model", "int8"]) == 0
    forms = [json.loads(line)["form"] for line in capsys.readouterr().out.splitlines()]
    assert forms == ["fp32", "fp16", "int8"]


def test_what_a_page_cannot_be_made_of_is_one_sentence(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["page", str(exported), "data.store=jpeg"]) == 0  # the export's own preprocessing decides
    path = exported / "export/export.json"
    content = json.loads(path.read_text())
    content["metadata"]["preprocessing"]["jpeg_quality"] = 95
    path.write_text(json.dumps(content))
    before = (exported / "export/page.html").read_bytes()
    assert run(["page", str(exported)]) == 2
    assert "data.store=jpeg" in capsys.readouterr().err
    (exported / "export/model.onnx").unlink()
    assert run(["page", str(exported)]) == 2
    assert "is not exported yet; run `plumage export" in capsys.readouterr().err
    assert (exported / "export/page.html").read_bytes() == before


def test_without_npm_one_sentence_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DataError, match=r"npm is not installed; install npm, or put ort\.wasm.* of onnxruntime-web"
    ):
        runtime_files.engine()


def npm_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (tmp_path / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_an_engine_of_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist = "node_modules/onnxruntime-web/dist"
    npm_that(
        tmp_path,
        monkeypatch,
        f"mkdir -p {dist}; for f in {' '.join(runtime_files.SHA256)}; do echo x > {dist}/$f; done",
    )
    with pytest.raises(DataError, match="npm brought a different ort.wasm"):
        runtime_files.engine()
    npm_that(tmp_path, monkeypatch, "echo no such registry >&2; exit 1")
    with pytest.raises(DataError, match=r"cannot fetch onnxruntime-web .* \(no such registry\)"):
        runtime_files.engine()
    assert list((tmp_path / "cache/plumage").iterdir()) == []


def test_the_lock_names_every_package_by_its_digest_and_no_host() -> None:
    folder = Path(page.__file__).with_name("runtime")
    lock = json.loads((folder / "package-lock.json").read_text())
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    assert wanted == {runtime_files.NAME: runtime_files.VERSION}
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert packages[f"node_modules/{runtime_files.NAME}"]["version"] == runtime_files.VERSION
    assert all(one["integrity"].startswith("sha512-") and "resolved" not in one for one in packages.values())


def test_the_forms_are_those_of_the_export() -> None:
    from pipeline.export.small_forms import FORMS, file_of

    assert {form: file_of(form) for form in FORMS} == {
        form: model for form, (model, _) in page.FORMS.items() if form != "fp32"
    }
    assert write_page.MOST_BYTES == 20_000_000
