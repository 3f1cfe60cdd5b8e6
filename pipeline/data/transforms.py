"""The crop of a picture that training sees, and the one that evaluation sees, seeded image by image.

Each image has a random stream of its own, named by (seed, epoch, index), so what happens to it depends neither on
the number of processes or ranks, nor on whether a run was interrupted. All transforms of an image draw
from that one stream in turn.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from pipeline.common import seeding
from pipeline.config.data import DataConfig
from pipeline.data.pictures import Pixels

if TYPE_CHECKING:
    from pipeline.data.albumented import Stream


Transform = Callable[[Pixels, "Stream"], Pixels]


class Augmentation:
    """Random crop, mirror, colour and more for training: [H, W, 3] -> [P, P, 3], uint8 RGB.

    P is `data.image_px`, or what `data.progressive` says for the epoch: then the same crop, scaled down.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._crop: Transform = partial(_crop_and_mirror, config)
        self._erase: Transform | None = None
        if config.crop != "random" or config.color_jitter or config.random_erasing:
            from pipeline.data import albumented  # which takes half a second

            if config.crop != "random" or config.color_jitter:
                self._crop = albumented.crop_and_colour(config)
            if config.random_erasing:
                self._erase = albumented.erasing(config)
        self._automatic = _automatic(config.auto_augment)

    def __call__(self, picture: Pixels, epoch: int, index: int) -> Pixels:
        """The picture of draw `index` as training sees it in `epoch`."""
        stream = _stream(self.seed, epoch, index)
        crop = self._crop(picture, stream)
        if self._automatic is not None:
            crop = _apply_seeded(self._automatic, crop, seed=int(stream[0].integers(2**63)))
        if self._erase is not None:
            crop = self._erase(crop, stream)
        side_px = self.image_px(epoch)
        if side_px < self.config.image_px:
            crop = np.asarray(cv2.resize(crop, (side_px, side_px), interpolation=cv2.INTER_AREA), np.uint8)
        return crop

    def image_px(self, epoch: int) -> int:
        """Side of a training image in an epoch (from 0): progressive resizing (Howard 2018, fast.ai)."""
        stage = self.config.stage(epoch)
        return stage.image_px if stage else self.config.image_px


def _stream(seed: int, epoch: int, index: int) -> "Stream":
    """The random numbers of one draw."""
    seed = seeding.seed_of("augment", seed, epoch, index)
    return np.random.default_rng(seed), random.Random(seed)


def _crop_and_mirror(config: DataConfig, picture: Pixels, stream: "Stream") -> Pixels:
    """A crop of any place, mirrored in half of the cases: the one that albumentations 2.0.8 draws.

    It is a view of the picture where it is not mirrored: the batch takes the only copy.
    """
    draw, side_px = stream[1].random, config.image_px
    draw()  # by which `Compose` decides whether it applies
    padded = _padded(picture, config.pad_px)
    top, left = (int((side - side_px + 1) * draw()) for side in padded.shape[:2])
    crop = padded[top : top + side_px, left : left + side_px]
    mirrored = config.flip and draw() < 0.5
    return mirror(crop) if mirrored else crop


def mirror(picture: Pixels) -> Pixels:
    """The picture mirrored left to right; OpenCV does it many times as fast as a negative stride."""
    return np.asarray(cv2.flip(picture, 1), np.uint8)


def _padded(picture: Pixels, pad_px: int) -> Pixels:
    """The picture with black on each side: [H, W, 3] -> [H + 2 pad_px, W + 2 pad_px, 3]."""
    return np.pad(picture, ((pad_px, pad_px), (pad_px, pad_px), (0, 0))) if pad_px else picture


def _automatic(name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The operation of torchvision that `data.auto_augment` names."""
    if name == "none":
        return None
    from torchvision.transforms import v2  # imports torch.compile

    # Mueller & Hutter 2021, arXiv:2103.10158; Cubuk et al. 2020, arXiv:1909.13719
    operation: Callable[[torch.Tensor], torch.Tensor] = (
        v2.TrivialAugmentWide() if name == "trivial" else v2.RandAugment()
    )
    return operation


def _apply_seeded(operation: Callable[[torch.Tensor], torch.Tensor], picture: Pixels, seed: int) -> Pixels:
    """Apply an operation of torchvision; it draws from torch's global stream, which is seeded and then restored."""
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        changed = operation(torch.from_numpy(picture.copy()).permute(2, 0, 1))
    finally:
        torch.set_rng_state(before)
    return np.ascontiguousarray(changed.permute(1, 2, 0).numpy())


class CentreCrop:
    """The middle of the picture, for evaluation: [H, W, 3] -> [image_px, image_px, 3], uint8 RGB, a view."""

    def __init__(self, config: DataConfig) -> None:
        self._side_px, self._pad_px = config.image_px, config.pad_px

    def __call__(self, picture: Pixels, epoch: int, index: int) -> Pixels:  # noqa: ARG002
        """The same crop for every epoch and index."""
        padded = _padded(picture, self._pad_px)
        top, left = ((side - self._side_px) // 2 for side in padded.shape[:2])
        return padded[top : top + self._side_px, left : left + self._side_px]

    def image_px(self, epoch: int) -> int:  # noqa: ARG002
        """Side of an image, whatever the epoch."""
        return self._side_px
