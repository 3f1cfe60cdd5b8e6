"""The page as a folder for a web server: a service worker stores it, so that it can be installed and opens offline."""

import hashlib
import json
from pathlib import Path

import jinja2

from pipeline.common import files
from pipeline.webpage import page
from pipeline.webpage.icon import icon
from pipeline.webpage.page import Form
from pipeline.webpage.runtime_files import Engine

ICONS = (192, 512)
PAPER, ACCENT = "#fcfcfa", "#0f6a73"
ENDINGS = {"engine-module": "mjs", "engine-wasm": "wasm", "model": "onnx"}


def write(path: Path, export: Path, form: Form, engine: Engine) -> int:
    """Write the folder, whole or not at all; an earlier one is replaced. Its size in bytes.

    Large files have a part of their digest in their names, so that no store holds an old one for a new one.

    Args:
        export: folder of the export.
        form: of the model.
    """
    parts = page.parts(export, form, engine)
    names = {name: f"{name}-{_digest(content)}.{ENDINGS[name]}" for name, content in parts.items()}
    contents = {names[name]: content for name, content in parts.items()}
    contents |= {f"icon-{side}.png": icon(side) for side in ICONS}
    contents["manifest.webmanifest"] = _manifest(export)
    html = page.folder_page(export, form, names).encode()
    version = _digest(html + b"".join(_digest(content).encode() for content in contents.values()))
    contents["service-worker.js"] = _service_worker(["./", *contents], version)
    contents["index.html"] = html
    with files.replacing_folder(path) as folder:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    return sum(map(len, contents.values()))


def _manifest(export: Path) -> bytes:
    facts = page.facts_of(export)
    said = {
        "name": f"{facts['origin']['run']}: which of {len(facts['classes'])} classes?",
        "short_name": str(facts["origin"]["run"]),
        "start_url": "./",
        "scope": "./",
        "display": "standalone",
        "background_color": PAPER,
        "theme_color": ACCENT,
        "icons": [
            {"src": f"icon-{side}.png", "sizes": f"{side}x{side}", "type": "image/png", "purpose": purpose}
            for side in ICONS
            for purpose in ("any", "maskable")
        ],
    }
    return json.dumps(said, ensure_ascii=False, indent=1).encode()


def _service_worker(names: list[str], version: str) -> bytes:
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(
        page.asset("service-worker.js")
    )
    return template.render(files=json.dumps(names), version=version).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
