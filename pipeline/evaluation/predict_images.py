"""Classifies single pictures with a run's checkpoint. No data set is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.common import console
from pipeline.common.errors import DataError
from pipeline.config.schema import Config
from pipeline.data import pictures, prepare
from pipeline.data.tta import tta_crops
from pipeline.distributed import process_group
from pipeline.inference import load_model
from pipeline.inference.load_model import LoadedModel
from pipeline.models.precision import autocast

TOP = 5


def classify(config: Config, images: Sequence[Path]) -> dict[str, Any]:
    """Show the five most likely classes of each picture, and return them in plain types.

    Raises:
        UserError: the checkpoint is missing or of another model, or a picture is not readable.
    """
    if not images:
        raise DataError("predict: no picture is given; name one or more files behind the configuration")
    with process_group.join(config.train.device, config.distributed.timeout_s) as ranks:
        model, names = load_model.load_model_without_data(config, load_model.checkpoint_path(config), ranks)
        top_classes = [
            _most_likely(probabilities(config, model, path, ranks.device), names) for path in images
        ]
    rows = [
        [path if place == 0 else "", entry["class"], entry["probability"]]
        for path, classes in zip(images, top_classes, strict=True)
        for place, entry in enumerate(classes)
    ]
    console.show_table(f"{model.path}, epoch {model.epoch}", ["picture", "class", "probability"], rows)
    return {
        "checkpoint": str(model.path),
        "checkpoint_sha256": model.sha256,
        "predictions": [
            {"image": str(path), "classes": classes}
            for path, classes in zip(images, top_classes, strict=True)
        ],
    }


def probabilities(
    config: Config, model: LoadedModel, path: Path, device: torch.device
) -> npt.NDArray[np.float64]:
    """The probability of each class, float64 [C]; the picture is resized and cropped as in `eval`."""
    picture = pictures.picture(path, prepare.layout(config.data))
    crops = np.stack([view(picture, 0, 0) for view in tta_crops(config.data, config.eval.tta)])
    image = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2)
    with torch.inference_mode(), autocast(device, model.precision):
        logits = model.model(image).double()
    return np.asarray(logits.softmax(1).mean(0).cpu(), np.float64)


def _most_likely(probability: npt.NDArray[np.float64], names: Sequence[str]) -> list[dict[str, Any]]:
    order = np.argsort(-probability, kind="stable")[:TOP]
    return [{"class": names[label], "probability": float(probability[label])} for label in order]
