"""RUN/export/golden: five drawn pictures of the kinds that programs read differently, and the trained model's logits.

They are drawn, so that they show nothing of a user's data and have no licence but this program's.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from pipeline.answering.picture_outputs import Outputs, outputs_of
from pipeline.common.errors import DataError
from pipeline.config.schema import Config
from pipeline.export.network import LOGITS
from pipeline.export.onnx_file import Graph
from pipeline.export.proof import TOLERANCE, channels_first, drawn
from pipeline.export.standalone import crop_of
from pipeline.inference.load_model import LoadedModel

JPEG_QUALITY = 93
GOLDEN = 1000
"""number of the first drawn bird: those of the proof are others"""


def write(folder: Path, config: Config, model: LoadedModel) -> None:
    """Write the pictures, and golden.json: of each its file, the SHA-256 of its crop's bytes, its label and logits.

    Args:
        folder: is made.
        config: of the run; the pictures are answered as `predict` does it, on the CPU.
        model: computes in fp32.

    Raises:
        CheckpointError: the outputs are not finite.
    """
    folder.mkdir()
    paths = write_pictures(folder, config.data.resize_px)
    described: list[dict[str, Any]] = []
    for one in (one for batch in outputs_of(config, model, paths, torch.device("cpu")) for one in batch):
        if not isinstance(one, Outputs):
            raise DataError(f"{one.path}: cannot be read again ({one.reason}); report this")
        described.append(
            {
                "file": one.path.name,
                "crop_sha256": hashlib.sha256(np.ascontiguousarray(one.crop).tobytes()).hexdigest(),
                "label": int(one.logits.argmax()),
                "logits": one.logits.tolist(),
            }
        )
    golden = {"tolerance": TOLERANCE, "pictures": described}
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


def write_of_form(folder: Path, form: str, graph: Graph, given: dict[str, Any], tolerance: float) -> None:
    """Write golden.FORM.json: as golden.json, with the labels and the logits of a smaller form of the graph.

    Args:
        folder: with golden.json and its pictures.
        given: `preprocessing` of the metadata.
        tolerance: largest difference of logits that passes, relative to the largest one.
    """
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    for picture in golden["pictures"]:
        images = channels_first([crop_of(folder / picture["file"], given)])
        logits = graph.outputs(images)[LOGITS][0]
        picture |= {"label": int(logits.argmax()), "logits": logits.tolist()}
    text = json.dumps(golden | {"tolerance": tolerance}, indent=1) + "\n"
    (folder / f"golden.{form}.json").write_text(text, encoding="utf-8")


def write_pictures(folder: Path, resize_px: int) -> list[Path]:
    """Write the pictures: some are smaller than the stored size, one is so large that its JPEG is scaled."""
    plain, turned, large, clear, grey = (
        Image.fromarray(drawn(side, GOLDEN + n))
        for n, side in enumerate(round(resize_px * share) for share in (1.25, 0.75, 2.5, 0.75, 1.25))
    )
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    wide = turned.crop((0, 0, turned.width, turned.height * 3 // 4))
    clear.putalpha(
        Image.fromarray(np.tile(np.linspace(0, 255, clear.width).astype(np.uint8), (clear.height, 1)))
    )
    values = np.asarray(grey.convert("L")).astype(np.uint16) * 257
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "1-plain.jpg": (plain, {"quality": JPEG_QUALITY}),
        "2-turned.jpg": (wide, {"quality": JPEG_QUALITY, "exif": exif.tobytes()}),
        "3-large.jpg": (large, {"quality": JPEG_QUALITY}),
        "4-transparent.png": (clear, {}),
        "5-grey-16-bits.png": (Image.fromarray(values), {}),
    }
    for name, (picture, how) in pictures.items():
        picture.save(folder / name, **how)
    return [folder / name for name in pictures]
