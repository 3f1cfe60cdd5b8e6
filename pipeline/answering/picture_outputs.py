"""A model's outputs for pictures: decoded on all cores, predicted in batches."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.common import hardware
from pipeline.common.errors import CheckpointError, name_some
from pipeline.config.schema import Config
from pipeline.data import pictures
from pipeline.data.image_store import map_in_order
from pipeline.data.loader import Batch
from pipeline.data.pictures import PictureError, Pixels
from pipeline.data.tta import tta_crops
from pipeline.distributed.process_group import Ranks
from pipeline.inference.load_model import LoadedModel
from pipeline.inference.predict import Predictions, average_views, predict_batches
from pipeline.models.option_errors import memory_errors


@dataclass(frozen=True)
class InMemory:
    """A picture that is decoded already: an image of Pillow, or uint8 [H, W, 3], RGB.

    path: what stands for it in answers and errors.
    """

    path: Path
    picture: Image.Image | Pixels


@dataclass(frozen=True)
class Outputs:
    """What the model says of one picture, as `eval` does. crop: uint8 [P, P, 3], the first view of it.

    logits: float32 [C], with several views the logarithm of the mean probability. features: float32 [D], the input
    of the model's last layer, the mean over the views.
    """

    path: Path
    crop: Pixels
    logits: npt.NDArray[np.float32]
    features: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Unreadable:
    """What is no picture, and why."""

    path: Path
    reason: str


def outputs_of(
    config: Config, model: LoadedModel, images: Sequence[Path | InMemory], device: torch.device
) -> Iterator[list[Outputs | Unreadable]]:
    """The outputs of each picture, a file or in memory, in their order, or what is wrong with it: batch by batch.

    Pictures are decoded, resized and cropped as for `eval`, in threads (decoding and resizing release the
    interpreter), while the model computes the batch before. Crops of two batches are in memory, whatever the number of
    files.

    Raises:
        CheckpointError: the model's outputs are not finite.
        ConfigError: memory does not suffice for a batch.
    """
    layout, crops = pictures.Layout.of(config.data), tta_crops(config.data, config.eval.tta)

    def look(image: Path | InMemory) -> tuple[Path, Pixels] | Unreadable:
        path = image.path if isinstance(image, InMemory) else image
        try:
            if isinstance(image, InMemory):
                picture = pictures.picture_in_memory(image.picture, layout, str(path))
            else:
                picture = pictures.picture(path, layout)
        except PictureError as error:
            return Unreadable(path, str(error).removeprefix(f"{path}: "))
        return path, np.stack([crop(picture, 0, 0) for crop in crops])

    at_once = max(1, config.eval.batch_size // len(crops))
    with ThreadPoolExecutor(hardware.cores()) as pool:
        seen = map_in_order(pool, look, images, ahead=at_once)
        while batch := list(islice(seen, at_once)):
            good = [one for one in batch if not isinstance(one, Unreadable)]
            outputs = iter(_predict(config, model, good, device) if good else ())
            yield [one if isinstance(one, Unreadable) else next(outputs) for one in batch]


def _predict(
    config: Config, model: LoadedModel, batch: list[tuple[Path, Pixels]], device: torch.device
) -> list[Outputs]:
    views = np.stack([views for _, views in batch])
    images = torch.from_numpy(views.reshape(-1, *views.shape[2:])).permute(0, 3, 1, 2)
    with memory_errors(
        f"eval.batch_size: memory does not suffice for a batch of {len(images)} images",
        f"lower eval.batch_size ({config.eval.batch_size} now), or set eval.tta=none or train.device=cpu",
    ):
        predicted = _averaged(model, images, views.shape[1], device)
    values = np.concatenate([predicted.logits, predicted.features], axis=1)
    finite: npt.NDArray[np.bool_] = np.isfinite(values).all(axis=1)
    if not finite.all():
        paths = [path for (path, _), is_finite in zip(batch, finite, strict=True) if not is_finite]
        raise CheckpointError(
            f"{model.path}: the model's outputs for {paths[0] if len(paths) == 1 else name_some(paths)} are not "
            "finite; its weights have diverged or the file is damaged: name another checkpoint with eval.checkpoint"
        )
    return [
        Outputs(path, crops[0], logits, features)
        for (path, crops), logits, features in zip(batch, predicted.logits, predicted.features, strict=True)
    ]


def _averaged(model: LoadedModel, images: torch.Tensor, views: int, device: torch.device) -> Predictions:
    """The outputs of uint8 [n * views, 3, P, P], averaged over the views of each picture."""
    rows = torch.arange(len(images))
    batch, numbers = Batch(images, rows, rows), rows.numpy()
    predicted = predict_batches(
        model.network, [batch], numbers, model.precision, Ranks.single(device), features=True
    )
    return average_views(
        [
            Predictions(
                numbers[: len(images) // views],
                predicted.logits[view::views],
                predicted.features[view::views],
            )
            for view in range(views)
        ]
    )
