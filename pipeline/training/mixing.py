"""Two images of a batch become one, with both labels: mixup, CutMix, SnapMix; or regions of images are changed.

The way, the partners, the ratio and the box are functions of (seed, step, rank), so nothing is saved or
restored. One ratio and one box serve a whole batch, as in the papers' own code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.models.classifier import Classifier, evaluating
from pipeline.training import activation_crops

Box = tuple[slice, slice]  # rows, columns


class MixedBatch(NamedTuple):
    """A batch, two labels for each image, and the weight of each label in its loss."""

    image: Tensor
    """[B, 3, H, W], uint8, or float32 in 0..255"""
    label: Tensor
    """int64 [B]"""
    other_label: Tensor
    """int64 [B]"""
    weight: Tensor
    """float32 [B]"""
    other_weight: Tensor
    """float32 [B]; with SnapMix the two do not add up to 1"""

    @classmethod
    def unmixed(cls, image: Tensor, label: Tensor) -> "MixedBatch":
        """Images that keep their labels, and those alone."""
        one = torch.ones(len(label), device=label.device)
        return cls(image, label, label, one, torch.zeros_like(one))


def mix(
    batch: Batch, ways: Sequence[MixConfig], generator: np.random.Generator, model: Classifier
) -> MixedBatch:
    """Mix a batch in one of the ways, by their probabilities, or leave it as it is.

    Args:
        batch: on the model's device.
        generator: of this batch's own random numbers.
        model: SnapMix and the data-aware crops ask it where the class is in an image.
    """
    way = _chosen(ways, generator.random())
    if way is None or (len(batch.label) == 1 and not way.keeps_labels):
        return MixedBatch.unmixed(batch.image, batch.label)
    if way.keeps_labels:
        hides = way.name == "activation_mask"
        share = part_share(model, batch, generator) if hides else semantic_share(model, batch)
        image = activation_crops.change(way.name, batch, share, model.mean, generator)
        return MixedBatch.unmixed(image, batch.label)
    one = torch.ones(len(batch.label), device=batch.label.device)
    partner = activation_crops.on_device(generator.permutation(len(one)), one.device)
    other_label = batch.label[partner]
    ratio = generator.beta(way.alpha, way.alpha)
    if way.name == "mixup":
        image = ratio * batch.image.float() + (1 - ratio) * batch.image[partner].float()
        return MixedBatch(image, batch.label, other_label, ratio * one, (1 - ratio) * one)
    height, width = batch.image.shape[2:]
    box = random_box(height, width, 1 - ratio, generator)
    if way.name == "cutmix":
        image = batch.image.clone()
        image[(..., *box)] = batch.image[partner][(..., *box)]
        pasted = _area(box) / (height * width)
        return MixedBatch(image, batch.label, other_label, (1 - pasted) * one, pasted * one)
    source = random_box(height, width, 1 - generator.beta(way.alpha, way.alpha), generator)
    return _snapmix(batch, partner, box, source, model)


def _chosen(ways: Sequence[MixConfig], draw: float) -> MixConfig | None:
    for way in ways:
        if draw < way.probability:
            return way
        draw -= way.probability
    return None


def random_box(height: int, width: int, area: float, generator: np.random.Generator) -> Box:
    """A box of a share of the area around a random point, cut at the border (Yun et al. 2019, arXiv:1905.04899)."""
    tall, wide = int(height * area**0.5), int(width * area**0.5)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    rows = slice(max(0, y - tall // 2), min(height, y + tall // 2))
    return rows, slice(max(0, x - wide // 2), min(width, x + wide // 2))


def _area(box: Box) -> int:
    rows, columns = box
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def _snapmix(batch: Batch, partner: Tensor, box: Box, source: Box, model: Classifier) -> MixedBatch:
    """SnapMix (Huang et al. 2021, arXiv:2012.04846).

    A box of the partner is pasted into another box of the image, scaled to fit. A label weighs as much
    as the share of its class's activation that is still, or now, in the picture.
    """
    if not _area(box) or not _area(source):
        return MixedBatch.unmixed(batch.image, batch.label)
    share = semantic_share(model, batch)
    rows, columns = box
    size = rows.stop - rows.start, columns.stop - columns.start
    patch = batch.image[partner][(..., *source)].float()
    image = batch.image.float()
    image[(..., *box)] = F.interpolate(patch, size, mode="bilinear", align_corners=True)
    lost = share[(..., *box)].sum((1, 2))
    gained = share[partner][(..., *source)].sum((1, 2))
    return MixedBatch(image, batch.label, batch.label[partner], 1 - lost, gained)


def semantic_share(model: Classifier, batch: Batch) -> Tensor:
    """The share of each pixel in the activation of the image's own class: float32 [B, H, W], sum 1 an image."""
    with evaluating(model):
        activation = model.class_activation(batch.image, batch.label)
    return _share(activation, batch)


def part_share(model: Classifier, batch: Batch, generator: np.random.Generator) -> Tensor:
    """As `semantic_share`, of one channel that speaks for the image's own class, drawn for each image."""
    shape = len(batch.label), getattr(model.head, "in_features", 1)
    with evaluating(model):
        draws = activation_crops.on_device(
            generator.standard_exponential(shape, np.float32), batch.label.device
        )
        activation = model.part_activation(batch.image, batch.label, draws)
    return _share(activation, batch)


def _share(activation: Tensor, batch: Batch) -> Tensor:
    size = batch.image.shape[2:]
    maps = F.interpolate(activation[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    maps = maps - maps.amin((1, 2), keepdim=True)
    total = maps.sum((1, 2), keepdim=True)
    even = torch.full_like(maps, 1 / maps[0].numel())  # a map without any peak says nothing of places
    return torch.where(total > 0, maps / total.clamp(min=torch.finfo(maps.dtype).tiny), even)
