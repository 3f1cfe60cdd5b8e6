"""How a picture looks to training, and to evaluation: albumentations, seeded image by image.

Albumentations 2.0.8 gives every loader process the same random stream in every epoch. Here each
image has a seed of its own, a function of (seed, epoch, index), so what happens to it depends
neither on the number of processes or ranks, nor on whether a run was interrupted.
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for news

import albumentations as A
import cv2
import numpy as np

from pipeline import seeding
from pipeline.config import DataConfig
from pipeline.data.store import Pixels


class Augmentation:
    """Random crop, mirror and colour for training: [H, W, 3] -> [image_px, image_px, 3], uint8 RGB."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.seed = seed
        size = config.image_px, config.image_px
        if config.crop == "random":
            steps: list[A.BasicTransform] = [A.RandomCrop(*size)]
        else:
            area = config.crop_area_min, 1.0
            steps = [
                A.RandomResizedCrop(size, scale=area, ratio=(3 / 4, 4 / 3), interpolation=cv2.INTER_LINEAR)
            ]
        if config.flip:
            steps.append(A.HorizontalFlip(p=0.5))
        if config.color_jitter:
            change = config.color_jitter
            steps.append(
                A.ColorJitter(
                    (1 - change, 1 + change), (1 - change, 1 + change), (1 - change, 1 + change), 0, p=1
                )
            )
        self._compose = A.Compose(steps)

    def __call__(self, picture: Pixels, epoch: int, index: int) -> Pixels:
        """The picture as image `index` is seen in `epoch`."""
        self._compose.set_random_seed(seeding.seed_of("augment", self.seed, epoch, index) % 2**32)
        return np.asarray(self._compose(image=picture)["image"], np.uint8)


class CentreCrop:
    """The middle of the picture, for evaluation: [H, W, 3] -> [image_px, image_px, 3], uint8 RGB."""

    def __init__(self, config: DataConfig) -> None:
        self._compose = A.Compose([A.CenterCrop(config.image_px, config.image_px)])

    def __call__(self, picture: Pixels, epoch: int, index: int) -> Pixels:  # noqa: ARG002
        """The same crop for every epoch and index."""
        return np.asarray(self._compose(image=picture)["image"], np.uint8)
