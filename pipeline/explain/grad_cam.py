"""Grad-CAM (Selvaraju et al., ICCV 2017, by the package `grad-cam`): where the evidence for a prediction lies."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from pipeline.common import console, hardware
from pipeline.config.schema import Config
from pipeline.data import sampling
from pipeline.data.loader import build_loader
from pipeline.data.prepare import Prepared
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.models.classifier import Classifier
from pipeline.models.option_errors import memory_errors

Maps = npt.NDArray[np.float16]
BATCH = 16


class _Grid(GradCAM):  # type: ignore[misc]
    """Grad-CAM at the resolution of the layer; `enlarged` makes a picture of it when it is shown."""

    def get_target_width_height(self, input_tensor: Tensor) -> Any:  # noqa: ARG002
        return None


def spatial_layer(model: Classifier, image_px: int) -> nn.Module | None:
    """The last layer of timm's `feature_info`, if its output has height and width; else None.

    Vision transformers have no such layer: their blocks return a sequence.
    """
    last = _last_stage(model)
    if last is None:
        return None
    layer = model.backbone.get_submodule(last["module"])
    shapes: list[torch.Size] = []
    handle = layer.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    device = next(model.parameters()).device
    with torch.inference_mode(), hardware.repeatable_convolutions():
        model.eval()(torch.zeros(1, 3, image_px, image_px, dtype=torch.uint8, device=device))
    handle.remove()
    return layer if shapes and len(shapes[0]) == 4 else None


def class_maps(
    config: Config,
    data: Prepared,
    model: Classifier,
    layer: nn.Module,
    rows: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    ranks: Ranks,
) -> Maps:
    """The maps of the predicted classes: float16 [n, h, w] in 0..1, at the resolution of `layer`.

    The smallest value of a map is subtracted, then the map is divided by its largest value. A map of zeros means
    that nothing in the picture speaks for the class.

    Args:
        rows: int64 [n], of the sample table.
        predicted: int64 [n], the class of each map.

    Raises:
        ConfigError: memory does not suffice.
    """
    loader = build_loader(data, CentreCrop(config.data), config.data.workers, ranks)
    batches = sampling.in_order(rows, BATCH)
    maps = []
    too_little = memory_errors(
        f"report.explained: memory does not suffice for heat maps of {BATCH} images at once",
        "set train.device=cpu, or report.write=false",
    )
    with too_little, mapping(model, layer) as maps_of, console.bar("heat maps", len(rows)) as bar:
        served = bar.count(loader.batches(0, batches), map(len, batches))
        for batch, classes in zip(served, sampling.in_order(predicted, BATCH), strict=True):
            maps.append(maps_of(batch.to(ranks.device).image, classes))
    return np.concatenate(maps)


@contextmanager
def mapping(model: Classifier, layer: nn.Module) -> Iterator[Callable[[Tensor, npt.NDArray[np.int64]], Maps]]:
    """Yield what maps the evidence for a class of each image: uint8 [B, 3, P, P], int64 [B] -> as `class_maps`.

    A map is a picture, not a number: even in a deterministic run the gradients of layers without a deterministic
    algorithm on GPUs (adaptive max pooling) are computed.
    """
    for weight in model.parameters():
        weight.requires_grad_(False)  # gradients need to reach the layer, and nothing below it
    for weight in layer.parameters():
        weight.requires_grad_(True)
    cam = _Grid(model, [layer], reshape_transform=_channels_first(model))

    def maps_of(images: Tensor, classes: npt.NDArray[np.int64]) -> Maps:
        maps = cam(images, [ClassifierOutputTarget(int(label)) for label in classes])
        return np.asarray(maps, np.float16)

    try:
        with hardware.repeatable_convolutions(), hardware.any_algorithms():
            yield maps_of
    finally:
        cam.activations_and_grads.release()


def enlarged(grid: npt.NDArray[Any], width: int, height: int) -> npt.NDArray[np.float32]:
    """A map [h, w], bilinearly enlarged: float32 [height, width]."""
    large = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large, np.float32)


def _last_stage(model: Classifier) -> dict[str, Any] | None:
    """timm's entry for the last stage of a network: module, num_chs, reduction; None without entries."""
    info: Any = getattr(model.backbone, "feature_info", None)
    entries = getattr(info, "info", info)
    return dict(entries[-1]) if entries else None


def _channels_first(model: Classifier) -> Any:
    """A function that turns [B, H, W, C], the layout of Swin, into [B, C, H, W]."""
    channels = (_last_stage(model) or {}).get("num_chs")

    def transform(output: Tensor) -> Tensor:
        last = output.shape[1] != channels and output.shape[-1] == channels
        return output.permute(0, 3, 1, 2) if last else output

    return transform
