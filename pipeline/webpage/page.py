"""A page that names the classes of pictures: one file, a folder for a web server, or the front of `plumage serve`."""

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jinja2

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.report.page_values import readable
from pipeline.webpage.runtime_files import Engine

Kind = Literal["file", "folder", "served"]
"""all in one file; the same with its parts beside it, to be installed; the front of `plumage serve`"""
Form = Literal["fp32", "fp16", "int8"]
FORMS: dict[Form, tuple[str, str]] = {
    "fp32": ("model.onnx", "golden.json"),
    "fp16": ("model.fp16.onnx", "golden.fp16.json"),
    "int8": ("model.int8.onnx", "golden.int8.json"),
}
"""file of the model, and that of its golden logits"""
COMPANIONS = "page.json"
PICTURES = "jpeg_coefficients.js", "jpeg_pixels.js", "png.js", "stored_size.js", "resize.js", "picture.js"
OFFLINE = *PICTURES, "offline_engine.js"
SERVED = "stored_size.js", "served_engine.js"
INSTALL = ("install.js",)
VIEW = "heat_map.js", "answer_view.js", "page.js"


def facts_of(folder: Path) -> dict[str, Any]:
    """What an export says of its model, in plain types.

    Raises:
        DataError: there is no export, or it is damaged.
    """
    path = folder / "export.json"
    if not path.is_file():
        raise DataError(f"{path}: missing; export the run first")
    facts = files.read_json(path, dict[str, Any], "export the run again").get("metadata")
    if not isinstance(facts, dict) or not {"classes", "preprocessing", "origin", "weights"} <= facts.keys():
        raise DataError(f"{path}: says too little about the model; export the run again")
    return facts


def offline_page(folder: Path, form: Form, engine: Engine) -> str:
    """The page that computes itself, with the model inside.

    Args:
        folder: of the export.
        form: of the model.
        engine: onnxruntime-web.
    """
    values = _computing(folder, form)
    return _render(
        "file",
        values,
        (*OFFLINE, "parts_inside.js", *VIEW),
        {name: _packed(content) for name, content in parts(folder, form, engine).items()},
    )


def folder_page(folder: Path, form: Form, names: Mapping[str, str]) -> str:
    """The same with its parts in files beside it; names: of the parts' files."""
    values = _computing(folder, form) | {"files": dict(names)}
    return _render("folder", values, (*OFFLINE, "parts_beside.js", *VIEW, *INSTALL))


def served_page(folder: Path) -> str:
    """The page that asks the server from which it came; folder: of the export."""
    return _render("served", _values(folder), (*SERVED, *VIEW))


def parts(folder: Path, form: Form, engine: Engine) -> dict[str, bytes]:
    """The files that a page which computes needs beside it, by name."""
    model, _ = FORMS[form]
    return {
        "engine-module": engine.module,
        "engine-wasm": engine.wasm,
        "model": (folder / model).read_bytes(),
    }


def _computing(folder: Path, form: Form) -> dict[str, Any]:
    """What the script of a page that computes knows."""
    return _values(folder) | {"form": form, "golden": _golden(folder / "golden", FORMS[form][1])}


def _values(folder: Path) -> dict[str, Any]:
    """What the page's script knows."""
    facts, path = facts_of(folder), folder / COMPANIONS
    kept = files.read_json(path, dict[str, Any], "write the page again") if path.is_file() else {}
    return {
        "classes": [readable(name) for name in facts["classes"]],
        "names": facts["classes"],
        "preprocessing": facts["preprocessing"],
        "calibrated": facts.get("temperature") is not None,
        "unknown": facts.get("unknown"),
        "prediction_set": facts.get("prediction_set"),
        "heat_maps": facts.get("heat_maps"),
        "model": facts.get("model"),
        "origin": facts["origin"],
        "weights": facts["weights"],
        "numbers": facts.get("numbers", []),
        "look_alikes": kept.get("look_alikes", []),
        "pictures": kept.get("pictures", []),
    }


def _golden(folder: Path, name: str) -> dict[str, Any]:
    """The golden pictures as base64, with the logits that are wanted of them."""
    golden = files.read_json(folder / name, dict[str, Any], "export the run again")
    for picture in golden["pictures"]:
        picture["content"] = base64.b64encode((folder / picture["file"]).read_bytes()).decode("ascii")
    return golden


def _packed(content: bytes) -> str:
    """base64 of gzip: the same text for the same bytes."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")


def _render(
    kind: Kind, values: Mapping[str, Any], scripts: Sequence[str], inside: Mapping[str, str] | None = None
) -> str:
    """inside: parts of the page, as text, by name."""
    css = asset("page.css")
    script = '"use strict";\n(() => {\n' + "".join(map(asset, scripts)) + "})();\n"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(asset("page.html")).render(
        css=css,
        script=script,
        policy=_policy(kind, script, css),
        values=json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        parts=inside or {},
        kind=kind,
        count=len(values["classes"]),
        origin=values["origin"],
        model=values["model"],
        weights=values["weights"],
        numbers=values["numbers"],
        calibrated=values["calibrated"],
    )


def _policy(kind: Kind, script: str, css: str) -> str:
    """The Content-Security-Policy: nothing but the page itself, and the server where there is one."""
    code = "" if kind == "served" else " blob: 'wasm-unsafe-eval'"
    own = " 'self'" if kind == "folder" else ""
    asks = "'none'" if kind == "file" else "'self'"
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_source(script)}{code}",
            f"style-src {_hash_source(css)}",
            f"img-src data: blob:{own}",
            f"connect-src {asks}",
            *(["manifest-src 'self'", "worker-src 'self'"] if kind == "folder" else []),
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash_source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def asset(name: str) -> str:
    """The text of a file of this program."""
    return resources.files("pipeline.webpage").joinpath("assets", name).read_text(encoding="utf-8")
