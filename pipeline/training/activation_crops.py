"""Data-aware crops: a picture's most active region is enlarged, hidden, or exchanged for that of another of its class.

WS-DAN (Hu et al. 2019, arXiv:1901.09891) crops and hides by learned maps of attention, CAL (Rao et al. 2021,
arXiv:2108.08728) takes that over, and CALMix (Rios et al. 2026, arXiv:2605.18700) exchanges regions within a class; in
the variant "NC" of both, training pictures alone are cropped. Thresholds and padding are those of their code. Here the
map is the activation of the picture's own class, as in SnapMix, so that any network with a last feature map and a linear
head has one. What is hidden follows one channel, drawn by the root of its share in that activation, as CAL draws one of
its maps: above 20 to 50 % of its peak, the whole map would hide the whole object. CAL's bilinear pooling and its
counterfactual loss are no part of this.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.loader import Batch

CROPPED_FROM = (0.4, 0.6)  # of a map's peak, drawn for each picture: what is above is the region
HIDDEN_FROM = (0.2, 0.5)
PADDING = 0.1  # around a crop, of the picture's side


class Boxes(NamedTuple):
    """First and last row and column of a region of each picture: float32 [B, 1], whole numbers, pixels."""

    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor


def change(name: str, batch: Batch, share: Tensor, fill: Tensor, generator: np.random.Generator) -> Tensor:
    """The pictures of a batch, changed: float32 [B, 3, H, W], 0..255.

    Args:
        name: as in `MixConfig`.
        share: of each pixel in the activation of its picture's class, or of a channel, float32 [B, H, W], at least 0.
        fill: colour of what is hidden, float32 [1, 3, 1, 1], 0..255.
        generator: of this batch's own random numbers.
    """
    images = batch.image.float()
    if name == "activation_mask":
        return _hidden(images, share, fill, _draw(generator, HIDDEN_FROM, share))
    if name == "activation_crop":
        return _enlarged(images, active_boxes(share, _draw(generator, CROPPED_FROM, share), PADDING))
    boxes = active_boxes(share, _draw(generator, CROPPED_FROM, share), 0)
    noise = on_device(generator.random((len(images), len(images))), images.device)
    partner = _of_same_class(batch.label, noise)
    return _exchanged(images, boxes, partner)


def active_boxes(share: Tensor, threshold: Tensor, padding: float) -> Boxes:
    """The smallest box around the pixels of at least `threshold` times a map's peak.

    Args:
        share: float32 [B, H, W].
        threshold: float32 [B], 0..1.
        padding: of the side, added at each border, as far as the picture reaches.
    """
    active = share >= threshold[:, None, None] * share.amax((1, 2), keepdim=True)
    top, bottom = _ends(active.any(2), padding)
    left, right = _ends(active.any(1), padding)
    return Boxes(top, bottom, left, right)


def _ends(active: Tensor, padding: float) -> tuple[Tensor, Tensor]:
    """First and last active place of each row, bool [B, side] -> float32 [B, 1], with padding."""
    side = active.shape[1]
    place = torch.arange(side, device=active.device, dtype=torch.float32)
    first = torch.where(active, place, side).amin(1, keepdim=True)
    last = torch.where(active, place, -1).amax(1, keepdim=True)
    return (first - padding * side).floor().clamp(min=0), (last + padding * side).floor().clamp(max=side - 1)


def _hidden(images: Tensor, share: Tensor, fill: Tensor, threshold: Tensor) -> Tensor:
    """The pictures without what is active; a map without any peak hides nothing."""
    peak, lowest = share.amax((1, 2), keepdim=True), share.amin((1, 2), keepdim=True)
    kept = (share < threshold[:, None, None] * peak) | (peak == lowest)
    return torch.where(kept[:, None], images, fill)


def _enlarged(images: Tensor, boxes: Boxes) -> Tensor:
    """Each box, enlarged to the whole picture, corner on corner."""
    height, width = images.shape[2:]
    down = torch.arange(height, device=images.device) / max(height - 1, 1)
    across = torch.arange(width, device=images.device) / max(width - 1, 1)
    rows = boxes.top + down * (boxes.bottom - boxes.top)
    columns = boxes.left + across * (boxes.right - boxes.left)
    return _sampled(images, rows, columns)


def _exchanged(images: Tensor, boxes: Boxes, partner: Tensor) -> Tensor:
    """Each picture with its partner's box in its own, scaled to fit; where it is its own partner, as it was."""
    height, width = images.shape[2:]
    row, column = (torch.arange(side, device=images.device)[None] for side in (height, width))
    theirs = Boxes(*(ends[partner] for ends in boxes))
    rows = _mapped(row, boxes.top, boxes.bottom, theirs.top, theirs.bottom)
    columns = _mapped(column, boxes.left, boxes.right, theirs.left, theirs.right)
    inside = ((row >= boxes.top) & (row <= boxes.bottom))[:, :, None]
    inside = inside & ((column >= boxes.left) & (column <= boxes.right))[:, None]
    has_partner = partner != torch.arange(len(images), device=images.device)
    taken = (inside & has_partner[:, None, None])[:, None]
    return torch.where(taken, _sampled(images[partner], rows, columns), images)


def _mapped(place: Tensor, first: Tensor, last: Tensor, their_first: Tensor, their_last: Tensor) -> Tensor:
    """Places in first..last -> places in their_first..their_last."""
    return their_first + (place - first) * (their_last - their_first) / (last - first).clamp(min=1)


def _sampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pictures at rows [B, H] and columns [B, W], pixels, bilinearly."""
    height, width = images.shape[2:]
    y = (2 * rows / max(height - 1, 1) - 1)[:, :, None].expand(-1, -1, width)
    x = (2 * columns / max(width - 1, 1) - 1)[:, None].expand(-1, height, -1)
    grid = torch.stack([x, y], dim=3)
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
    # grid_sample returns a layout of its own, for which torch.compile would make a further graph.
    return sampled.contiguous(memory_format=torch.channels_last)


def _of_same_class(labels: Tensor, noise: Tensor) -> Tensor:
    """For each picture another one of its class by the largest noise, or itself where there is none: int64 [B]."""
    own = torch.arange(len(labels), device=labels.device)
    same = (labels[:, None] == labels[None]) & (own[:, None] != own[None])
    drawn = torch.where(same, noise, -1).argmax(1)
    return torch.where(same.any(1), drawn, own)


def _draw(generator: np.random.Generator, between: tuple[float, float], share: Tensor) -> Tensor:
    return on_device(generator.uniform(*between, len(share)).astype(np.float32), share.device)


def on_device(drawn: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Drawn numbers on a device, copied without waiting for it.

    From pageable memory CUDA takes up to 64 KiB at once; for more it may wait for the stream, `non_blocking` or not.
    """
    tensor = torch.from_numpy(drawn)
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)
