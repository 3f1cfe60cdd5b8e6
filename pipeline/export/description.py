"""What an exported model says about itself: classes, preprocessing, calibration, where it is from, and its licence."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.answering.unknown_threshold import UnknownThreshold
from pipeline.common import files
from pipeline.config.schema import Config
from pipeline.data import pictures
from pipeline.evaluation.set_rule import SetRule
from pipeline.export.numbers import measured
from pipeline.inference.load_model import LoadedModel
from pipeline.models.licences import licence_of
from pipeline.runs.directory import RunDirectory

READERS = "numpy", "pillow", "opencv-python-headless", "onnxruntime"
"""the packages that predict.py needs"""


def describe(
    config: Config,
    model: LoadedModel,
    classes: Sequence[str],
    content: Mapping[str, Any],
    temperature: float | None,
    unknown: UnknownThreshold | None,
    set_rule: SetRule | None,
    heat_maps: int | None,
) -> dict[str, Any]:
    """The metadata of model.onnx, in plain types.

    Args:
        content: of the checkpoint.
        temperature: that an evaluation has fitted; None: the probabilities are not calibrated.
        unknown: threshold below which a picture is of none of the classes.
        set_rule: of prediction sets.
        heat_maps: number of classes that have one; None: the network has none.
    """
    return {
        "program": f"plumage {__version__}",
        "model": config.model.name,
        "classes": list(classes),
        "preprocessing": preprocessing(config),
        "views": ["centre crop", "its mirror image"] if config.eval.tta == "flip" else ["centre crop"],
        "temperature": temperature,
        "unknown": None
        if unknown is None
        else {"score": unknown.score.name, "lowest_score": unknown.lowest, "kept": unknown.kept},
        "prediction_set": None if set_rule is None else dataclasses.asdict(set_rule),
        "heat_maps": heat_maps,
        "origin": {
            "run": config.run.name,
            "epoch": model.epoch,
            "step": model.step,
            "checkpoint_sha256": model.sha256,
            "config_sha256": files.digest_of_file(RunDirectory(config.run_dir).config_file),
            "sample_table_sha256": content["samples"],
        },
        "weights": weights(config.model.name, content["weights"]),
        "numbers": measured(config, model.sha256),
        "packages": {name: _version(name) for name in READERS},
    }


def preprocessing(config: Config) -> dict[str, Any]:
    """How a picture becomes the uint8 pixels that the graph takes; normalisation is a part of the graph."""
    data = config.data
    return {
        "formats": [name for name in pictures.FORMATS if name != "HEIF"],
        "background": list(data.background),
        "resize": data.resize,
        "resize_px": data.resize_px,
        "interpolation": "OpenCV: area where it shrinks, then bicubic where it grows",
        "jpeg_quality": pictures.JPEG_QUALITY if data.store == "jpeg" else None,
        "pad_px": data.pad_px,
        "crop": "centre",
        "image_px": data.image_px,
        "most_elongated": pictures.MOST_ELONGATED,
        "darkest_16_bit": pictures.DARKEST_16_BIT,
    }


def weights(model: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Where the weights that the training began with are from: name, SHA-256 of the file, licence; None: not known."""
    source, sha256 = str(origin.get("source", "")), origin.get("sha256")
    name = Path(source).name if sha256 else source
    return {"source": name, "sha256": sha256, "licence": licence_of(model, origin)}


def requirements() -> str:
    """The text of requirements.txt: the versions with which the export was proved."""
    return "".join(f"{name}=={_version(name)}\n" for name in READERS)


def _version(name: str) -> str:
    """The installed version of a package, or of its build for GPUs (onnxruntime-gpu) in its place."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return metadata.version(f"{name}-gpu")
