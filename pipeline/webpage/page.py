"""One HTML file that names the classes of pictures: without a server (`plumage page`), or as a server's front."""

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jinja2

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.report.page_values import readable

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
        raise DataError(f"{path}: says too little of the model; export the run again")
    return facts


def offline_page(folder: Path, form: Form, module: bytes, wasm: bytes) -> str:
    """The page that computes itself, with the model inside.

    Args:
        folder: of the export.
        form: of the model.
        module, wasm: of onnxruntime-web.
    """
    model, golden = FORMS[form]
    values = _values(folder) | {"form": form, "golden": _golden(folder / "golden", golden)}
    parts = {"engine-module": module, "engine-wasm": wasm, "model": (folder / model).read_bytes()}
    return _render(values, OFFLINE, {name: _packed(content) for name, content in parts.items()})


def served_page(folder: Path) -> str:
    """The page that asks the server from which it came; folder: of the export."""
    return _render(_values(folder), SERVED, {})


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


def _render(values: Mapping[str, Any], engine: tuple[str, ...], parts: Mapping[str, str]) -> str:
    css = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "".join(map(_asset, (*engine, *VIEW))) + "})();\n"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_asset("page.html")).render(
        css=css,
        script=script,
        policy=policy(script, css, served=not parts),
        values=json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        parts=parts,
        served=not parts,
        count=len(values["classes"]),
        origin=values["origin"],
        model=values["model"],
        weights=values["weights"],
        calibrated=values["calibrated"],
    )


def policy(script: str, css: str, *, served: bool) -> str:
    """The Content-Security-Policy: nothing but the page itself, and the server where there is one."""
    code = f"script-src {_hash_source(script)}" + ("" if served else " blob: 'wasm-unsafe-eval'")
    asks = "'self'" if served else "'none'"
    return "; ".join(
        (
            "default-src 'none'",
            code,
            f"style-src {_hash_source(css)}",
            "img-src data: blob:",
            f"connect-src {asks}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash_source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _asset(name: str) -> str:
    return resources.files("pipeline.webpage").joinpath("assets", name).read_text(encoding="utf-8")
