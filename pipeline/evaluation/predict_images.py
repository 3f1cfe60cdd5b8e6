"""Classifies single pictures with a run's checkpoint. No data set is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.common import console, hardware
from pipeline.common.errors import CheckpointError, DataError
from pipeline.config.schema import Config
from pipeline.data import pictures
from pipeline.data.tta import tta_crops
from pipeline.distributed import process_group
from pipeline.evaluation import training_state
from pipeline.inference import load_model
from pipeline.inference.load_model import LoadedModel
from pipeline.models.option_errors import memory_errors
from pipeline.models.precision import autocast
from pipeline.runs.directory import RunDirectory

TOP = 5


def classify(config: Config, images: Sequence[Path]) -> dict[str, Any]:
    """Show the five most likely classes of each picture that can be read, then name the others.

    Returns:
        In plain types: the checkpoint; `predictions`, one a picture that can be read; and `refused`, where there is
        one that cannot, what is wrong with each.

    Raises:
        UserError: the checkpoint is missing or of another model, its outputs are not finite, or no picture is readable.
    """
    if not images:
        raise DataError("predict: no picture is given; name one or more files behind the configuration")
    training_state.warn_of_unfinished(RunDirectory(config.run_dir))
    predictions: list[dict[str, Any]] = []
    refused: list[str] = []
    with process_group.join(config.train, config.distributed.timeout_s) as ranks:
        model, names = load_model.load_model_without_data(config, load_model.checkpoint_path(config), ranks)
        for path in images:
            try:
                probability = probabilities(config, model, path, ranks.device)
            except pictures.PictureError as error:
                refused.append(str(error))
            else:
                predictions.append({"image": str(path), "classes": _most_likely(probability, names)})
    sentence = f"{'; '.join(refused)}; give pictures that can be read ({pictures.WHAT_TO_GIVE})"
    if not predictions:
        raise DataError(sentence)
    rows = [
        [prediction["image"] if place == 0 else "", entry["class"], entry["probability"]]
        for prediction in predictions
        for place, entry in enumerate(prediction["classes"])
    ]
    console.show_table(f"{model.path}, epoch {model.epoch}", ["picture", "class", "probability"], rows)
    result = {
        "checkpoint": str(model.path),
        "checkpoint_sha256": model.sha256,
        "predictions": predictions,
    }
    if refused:
        console.fail(sentence)
        result["refused"] = refused
    return result


def probabilities(
    config: Config, model: LoadedModel, path: Path, device: torch.device
) -> npt.NDArray[np.float64]:
    """The probability of each class, float64 [C]; the picture is resized and cropped as in `eval`.

    Raises:
        PictureError: the picture is not readable.
        CheckpointError: the model's outputs are not finite.
        ConfigError: memory does not suffice for the views of one picture.
    """
    picture = pictures.picture(path, pictures.Layout.of(config.data))
    crops = np.stack([view(picture, 0, 0) for view in tta_crops(config.data, config.eval.tta)])
    with (
        memory_errors(
            f"eval.tta: memory does not suffice for the {len(crops)} view(s) of {path}",
            "set eval.tta=none, or train.device=cpu",
        ),
        hardware.repeatable_convolutions(),
        torch.inference_mode(),
        autocast(device, model.precision),
    ):
        image = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2)
        logits = model.model(image).double()
    if not logits.isfinite().all():
        raise CheckpointError(
            f"{model.path}: the model's outputs for {path} are not finite; its weights have diverged or the file is "
            "damaged: name another checkpoint with eval.checkpoint"
        )
    return np.asarray(logits.softmax(1).mean(0).cpu(), np.float64)


def _most_likely(probability: npt.NDArray[np.float64], names: Sequence[str]) -> list[dict[str, Any]]:
    order = np.argsort(-probability, kind="stable")[:TOP]
    return [{"class": names[label], "probability": float(probability[label])} for label in order]
