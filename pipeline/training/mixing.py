"""Two images of a batch become one, with both labels: mixup, CutMix, SnapMix.

Which way, which partners, which ratio and which box are functions of a name such as (seed, step), so
nothing is saved or restored. One ratio and one box serve a whole batch, as in the papers' own code.
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

Box = tuple[slice, slice]  # rows, columns


class Mixed(NamedTuple):
    """A batch, two labels for each image, and the weight of each label in its loss."""

    image: Tensor
    """[B, 3, H, W], uint8, or float32 in 0..255"""
    label: Tensor
    """int64 [B]"""
    other: Tensor
    """int64 [B]"""
    weight: Tensor
    """float32 [B]"""
    other_weight: Tensor
    """float32 [B]; with SnapMix the two do not add up to 1"""

    def loss(self, logits: Tensor, label_smoothing: float) -> Tensor:
        """Sum over images (and heads) of the weighted cross-entropies; logits float32 [heads, B, C]."""
        total = logits.new_zeros(())
        for of_head in logits:
            own = F.cross_entropy(of_head, self.label, reduction="none", label_smoothing=label_smoothing)
            total = total + (self.weight * own).sum()
            if self.other is not self.label:
                other = F.cross_entropy(
                    of_head, self.other, reduction="none", label_smoothing=label_smoothing
                )
                total = total + (self.other_weight * other).sum()
        return total

    def correct(self, logits: Tensor) -> Tensor:
        """How many images are predicted as the heavier of their labels; logits [heads, B, C]."""
        heavier = torch.where(self.weight >= self.other_weight, self.label, self.other)
        return (logits.mean(0).argmax(1) == heavier).sum()


def mix(batch: Batch, ways: Sequence[MixConfig], draws: np.random.Generator, model: Classifier) -> Mixed:
    """Mix a batch in one of the ways, by their probabilities, or leave it as it is.

    Args:
        batch: on the model's device.
        draws: a generator of this batch's own.
        model: SnapMix asks it where the class is in an image.
    """
    one = torch.ones(len(batch.label), device=batch.label.device)
    way = _chosen(ways, draws.random())
    if way is None or len(one) == 1:
        return Mixed(batch.image, batch.label, batch.label, one, 0 * one)
    partner = torch.from_numpy(draws.permutation(len(one))).to(one.device)
    other = batch.label[partner]
    ratio = draws.beta(way.alpha, way.alpha)
    if way.name == "mixup":
        image = ratio * batch.image.float() + (1 - ratio) * batch.image[partner].float()
        return Mixed(image, batch.label, other, ratio * one, (1 - ratio) * one)
    height, width = batch.image.shape[2:]
    box = random_box(height, width, 1 - ratio, draws)
    if way.name == "cutmix":
        image = batch.image.clone()
        image[(..., *box)] = batch.image[partner][(..., *box)]
        pasted = _area(box) / (height * width)
        return Mixed(image, batch.label, other, (1 - pasted) * one, pasted * one)
    source = random_box(height, width, 1 - draws.beta(way.alpha, way.alpha), draws)
    return _snapmix(batch, partner, box, source, model)


def _chosen(ways: Sequence[MixConfig], draw: float) -> MixConfig | None:
    for way in ways:
        if draw < way.probability:
            return way
        draw -= way.probability
    return None


def random_box(height: int, width: int, area: float, draws: np.random.Generator) -> Box:
    """A box of a share of the area around a random point, cut at the border (Yun et al. 2019, arXiv:1905.04899)."""
    tall, wide = int(height * area**0.5), int(width * area**0.5)
    y, x = int(draws.integers(height)), int(draws.integers(width))
    rows = slice(max(0, y - tall // 2), min(height, y + tall // 2))
    return rows, slice(max(0, x - wide // 2), min(width, x + wide // 2))


def _area(box: Box) -> int:
    rows, columns = box
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def _snapmix(batch: Batch, partner: Tensor, box: Box, source: Box, model: Classifier) -> Mixed:
    """SnapMix (Huang et al. 2021, arXiv:2012.04846).

    A box of the partner is pasted into another box of the image, scaled to fit. A label weighs as much
    as the share of its class's activation that is still, or now, in the picture.
    """
    if not _area(box) or not _area(source):
        one = torch.ones(len(batch.label), device=batch.label.device)
        return Mixed(batch.image, batch.label, batch.label, one, 0 * one)
    share = semantic_share(model, batch)
    rows, columns = box
    size = rows.stop - rows.start, columns.stop - columns.start
    patch = batch.image[partner][(..., *source)].float()
    image = batch.image.float()
    image[(..., *box)] = F.interpolate(patch, size, mode="bilinear", align_corners=True)
    lost = share[(..., *box)].sum((1, 2))
    gained = share[partner][(..., *source)].sum((1, 2))
    return Mixed(image, batch.label, batch.label[partner], 1 - lost, gained)


def semantic_share(model: Classifier, batch: Batch) -> Tensor:
    """The share of each pixel in the activation of the image's own class: float32 [B, H, W], sum 1 an image."""
    with evaluating(model):
        activation = model.class_activation(batch.image, batch.label)
    size = batch.image.shape[2:]
    maps = F.interpolate(activation[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    maps = maps - maps.amin((1, 2), keepdim=True)
    total = maps.sum((1, 2), keepdim=True)
    even = torch.full_like(maps, 1 / maps[0].numel())  # a map without any peak says nothing of places
    return torch.where(total > 0, maps / total.clamp(min=torch.finfo(maps.dtype).tiny), even)
