"""Grad-CAM (Selvaraju et al., ICCV 2017, as the package `grad-cam` has it): where a prediction looked."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from pipeline.common import console
from pipeline.config.schema import Config
from pipeline.data import sampling
from pipeline.data.loader import build_loader
from pipeline.data.prepare import Prepared
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.models.classifier import Classifier

Maps = npt.NDArray[np.float16]
BATCH = 16


class _Grid(GradCAM):  # type: ignore[misc]
    """Grad-CAM at the resolution of the layer: a picture of it is made when one is looked at."""

    def get_target_width_height(self, input_tensor: Tensor) -> Any:  # noqa: ARG002
        return None


def spatial_layer(model: Classifier, image_px: int) -> nn.Module | None:
    """The last layer whose output still has height and width, as timm's `feature_info` names it; or None.

    Vision transformers have none: their last blocks give a sequence.
    """
    last = _last_stage(model)
    if last is None:
        return None
    layer = model.backbone.get_submodule(last["module"])
    shapes: list[torch.Size] = []
    handle = layer.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    device = next(model.parameters()).device
    with torch.inference_mode():
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

    Each map has had its least value taken away and is divided by its largest; one that is zero
    everywhere found nothing that speaks for its class.

    Args:
        rows: int64 [n], of the sample table.
        predicted: int64 [n], the class whose evidence is shown.
    """
    for weight in model.parameters():
        weight.requires_grad_(False)  # gradients need to reach the layer, and nothing below it
    for weight in layer.parameters():
        weight.requires_grad_(True)
    cam = _Grid(model, [layer], reshape_transform=_channels_first(model))
    loader = build_loader(data, CentreCrop(config.data), config.data.workers, ranks)
    batches = sampling.in_order(rows, BATCH)
    maps = []
    with console.bar("heat maps", len(rows)) as bar:
        served = bar.count(loader.batches(0, batches), map(len, batches))
        for batch, classes in zip(served, sampling.in_order(predicted, BATCH), strict=True):
            found = cam(batch.to(ranks.device).image, [ClassifierOutputTarget(int(c)) for c in classes])
            maps.append(found.astype(np.float16))
    cam.activations_and_grads.release()
    return np.concatenate(maps)


def enlarged(grid: npt.NDArray[Any], width: int, height: int) -> npt.NDArray[np.float32]:
    """A map [h, w], bilinearly enlarged: float32 [height, width]."""
    large = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large, np.float32)


def _last_stage(model: Classifier) -> dict[str, Any] | None:
    """timm's entry on the last stage of a network: module, num_chs, reduction."""
    info: Any = getattr(model.backbone, "feature_info", None)
    entries = getattr(info, "info", info)
    return dict(entries[-1]) if entries else None


def _channels_first(model: Classifier) -> Any:
    """[B, H, W, C], as Swin has it, becomes [B, C, H, W]."""
    channels = (_last_stage(model) or {}).get("num_chs")

    def transform(output: Tensor) -> Tensor:
        last = output.shape[1] != channels and output.shape[-1] == channels
        return output.permute(0, 3, 1, 2) if last else output

    return transform
