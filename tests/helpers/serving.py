"""Small exports, made without torch, and servers that answer from them."""

import asyncio
import contextlib
import hashlib
import http.client
import io
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pipeline.common.signals import StopRequest
from pipeline.data.pictures import Pixels
from pipeline.export.description import preprocessing
from pipeline.export.golden import write_pictures
from pipeline.export.proof import TOLERANCE
from pipeline.export.standalone import Exported, crop_of
from pipeline.serving.limits import Limits
from pipeline.serving.serve import answer_until, listen
from pipeline.serving.served_model import Outputs, ServedModel
from pipeline.serving.service import Service
from tests.helpers import tiny

CLASSES = 4
WAIT_S = 60.0


def graph(seed: int) -> onnx.ModelProto:
    """A model of the form of an export: the mean colours of four quarters of a picture, times drawn weights."""
    drawn = np.random.default_rng(seed).normal(size=(12, CLASSES)).astype(np.float32)
    pool = {"kernel_shape": [16, 16], "strides": [16, 16]}
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("AveragePool", ["floats"], ["means"], **pool),
        helper.make_node("Flatten", ["means"], ["features"]),
        helper.make_node("MatMul", ["features", "weights"], ["large"]),
        helper.make_node("Mul", ["large", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        helper.make_node("ReduceMax", ["logits", "axis"], ["highest"], keepdims=0),
        helper.make_node("Cast", ["highest"], ["known_score"], to=TensorProto.DOUBLE),
        helper.make_node("Concat", ["means", "means"], ["colours"], axis=1),
        helper.make_node("Slice", ["colours", "first", "behind", "axis"], ["heat_maps"]),
    ]
    values = {"weights": drawn, "scale": np.float32(0.01), "axis": np.array([1])}
    values |= {"first": np.array([0]), "behind": np.array([CLASSES])}
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES]),
        helper.make_tensor_value_info("known_score", TensorProto.DOUBLE, ["batch"]),
        helper.make_tensor_value_info("heat_maps", TensorProto.FLOAT, ["batch", CLASSES, 2, 2]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, 32, 32])
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    made = helper.make_graph(nodes, "small", [images], outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def small_export(folder: Path, seed: int = 0) -> Path:
    """Write an export folder with that model and its golden pictures; its run is called "small-SEED"."""
    folder.mkdir(parents=True)
    facts = {
        "program": "plumage 0",
        "model": "mean colours",
        "classes": [f"{n:03}.Bird {n}" for n in range(CLASSES)],
        "preprocessing": preprocessing(tiny.config(folder)),
        "views": ["centre crop"],
        "temperature": 0.7,
        "unknown": {"score": "max_logit", "lowest_score": 6.5, "kept": 0.95},
        "prediction_set": {"method": "lac", "coverage": 0.9, "n": 99, "threshold": 0.9},
        "heat_maps": CLASSES,
        "numbers": [
            {
                "split": "test",
                "labels": None,
                "n": 8,
                "protocol": None,
                "top1": {"value": 0.5, "low": 0.2, "high": 0.8},
            }
        ],
        "origin": {"run": f"small-{seed}", "epoch": 1, "step": 2, "checkpoint_sha256": f"{seed:064x}"},
        "weights": {"source": "drawn", "sha256": None, "licence": "mit"},
        "packages": {},
    }
    model = graph(seed)
    helper.set_model_props(model, {name: json.dumps(fact) for name, fact in facts.items()})
    onnx.save(model, folder / "model.onnx")
    (folder / "golden").mkdir()
    described = []
    for path in write_pictures(folder / "golden", 40):
        crop = crop_of(path, facts["preprocessing"])
        logits = Exported(folder).outputs(crop)["logits"]
        described.append(
            {
                "file": path.name,
                "crop_sha256": hashlib.sha256(crop.tobytes()).hexdigest(),
                "label": int(logits.argmax()),
                "logits": logits.tolist(),
            }
        )
    golden = {"tolerance": TOLERANCE, "pictures": described}
    (folder / "golden" / "golden.json").write_text(json.dumps(golden))
    (folder / "export.json").write_text(json.dumps({"exporter": "drawn", "compared": {}, "metadata": facts}))
    return folder


def picture(seed: int, width: int = 60, height: int = 50, format_: str = "PNG", **how: Any) -> bytes:
    """A file of drawn colours; each seed has its own."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(stream, format_, **how)
    return stream.getvalue()


def expected(folder: Path, content: bytes, tmp: Path, top: int = 5) -> dict[str, Any]:
    """What predict.py says of a file, without its name."""
    path = tmp / "asked"
    path.write_bytes(content)
    answer = Exported(folder).answer(path, top)
    del answer["image"]
    return answer


class HeldModel(ServedModel):
    """A model that answers when it may."""

    def __init__(self, folder: Path, most: int = 8) -> None:
        self.may_answer, self.asked, self.sizes = threading.Event(), threading.Event(), list[int]()
        self.may_answer.set()
        super().__init__(folder, most)
        self.asked.clear()
        self.sizes.clear()

    def batch_outputs(self, crops: Sequence[Pixels]) -> list[Outputs]:
        self.sizes.append(len(crops))
        self.asked.set()
        assert self.may_answer.wait(WAIT_S)
        return super().batch_outputs(crops)


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    port: int
    service: Service
    stop: StopRequest
    thread: threading.Thread


@contextlib.contextmanager
def running(
    model: ServedModel,
    limits: Limits | None = None,
    *,
    threads: int = 2,
    token: str | None = None,
    drain_s: float = 0.0,
) -> Iterator[Running]:
    """Serve a model on a free port while the block lasts."""
    listener = listen("127.0.0.1", 0)
    service, stop = Service(model, limits or Limits(), threads), StopRequest()
    port = listener.getsockname()[1]
    thread = threading.Thread(
        target=lambda: asyncio.run(answer_until(stop, service, listener, token, drain_s)), name="server"
    )
    thread.start()
    with connection(port) as one:  # until it answers
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert answer(one)[0] == 200
    try:
        yield Running(f"http://127.0.0.1:{port}", port, service, stop, thread)
    finally:
        stop.name = stop.name or "SIGTERM"
        if isinstance(model, HeldModel):
            model.may_answer.set()
        thread.join(WAIT_S)
        service.close()
        listener.close()
        assert not thread.is_alive()


class Process:
    """A server in a process of its own."""

    def __init__(self, *words: object, environment: dict[str, str] | None = None) -> None:
        """Start it, and wait until it listens. words: of the verb, such as the export and options."""
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "serve", *map(str, words), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert self.popen.stderr is not None
        assert select.select([self.popen.stderr], [], [], WAIT_S)[0], (
            "the server has not said that it listens"
        )
        self.first = json.loads(self.popen.stderr.readline())
        self.url = self.first["url"]
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        self.lines += self.popen.stderr

    def end(self) -> tuple[int, str]:
        """Wait for the end; the exit code, and what stands on standard output."""
        assert self.popen.stdout is not None
        code = self.popen.wait(WAIT_S)
        self._reader.join()
        return code, self.popen.stdout.read()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.end()


def sent(*contents: bytes, name: str = "a.png") -> list[tuple[str, tuple[str, bytes]]]:
    """Files of a form, for httpx."""
    return [("pictures", (name, content)) for content in contents]


def form(*contents: bytes, name: bytes = b"a.png", field: bytes = b"pictures") -> bytes:
    """The same as the bytes of a body with the boundary `X`."""
    head = b'--X\r\nContent-Disposition: form-data; name="' + field + b'"; filename="' + name + b'"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in contents) + b"--X--\r\n"


def head(length: int | None, *lines: bytes) -> bytes:
    """The head of POST /predict; length: of the body, None: in chunks."""
    how = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    kind = b"Content-Type: multipart/form-data; boundary=X"
    return b"\r\n".join((b"POST /predict HTTP/1.1", b"Host: here", kind, how, *lines, b"", b""))


@contextlib.contextmanager
def connection(port: int) -> Iterator[socket.socket]:
    """A socket to a server, to say anything with."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as one:
        yield one


def answer(one: socket.socket) -> tuple[int, bytes]:
    """The status and the rest of what comes next; (0, b"") where the connection ends without a word."""
    response = http.client.HTTPResponse(one)
    try:
        response.begin()
        return response.status, response.read()
    except (http.client.RemoteDisconnected, ConnectionResetError):
        return 0, b""
