"""Transforms of albumentations, whose draws all come from the stream of one image.

Albumentations 2.0.8 gives every loader process the same random stream in every epoch, and `Compose.set_random_seed`
gives each transform of an image the same first number: the mirror image would be a function of the crop.
"""

import functools
import os
import random
from collections.abc import Sequence
from importlib import metadata

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for news

import albumentations as A
import cv2
import numpy as np

from pipeline.common.errors import ConfigError
from pipeline.config.data import DataConfig
from pipeline.data.pictures import Pixels

Stream = tuple[np.random.Generator, random.Random]
"""the random numbers of one draw; a transform takes them from either generator"""


class Albumented:
    """Transforms one after the other: [H, W, 3] -> [H', W', 3], uint8 RGB."""

    def __init__(self, steps: Sequence[A.BasicTransform]) -> None:
        _refuse_other_packages()
        self._compose = A.Compose(steps)

    def __call__(self, picture: Pixels, stream: Stream) -> Pixels:
        """The picture as a stream has it."""
        self._compose.set_random_state(*stream)
        return np.asarray(self._compose(image=picture)["image"], np.uint8)


def crop_and_colour(config: DataConfig) -> Albumented:
    """`data.crop`, `data.flip` and `data.color_jitter`."""
    size = config.image_px, config.image_px
    steps = [A.Pad(config.pad_px, fill=0)] if config.pad_px else []
    if config.crop == "random":
        steps.append(A.RandomCrop(*size))
    else:
        area = config.crop_area_min, 1.0
        steps.append(
            A.RandomResizedCrop(size, scale=area, ratio=(3 / 4, 4 / 3), interpolation=cv2.INTER_LINEAR)
        )
    if config.flip:
        steps.append(A.HorizontalFlip(p=0.5))
    if config.color_jitter:
        change = 1 - config.color_jitter, 1 + config.color_jitter
        steps.append(A.ColorJitter(change, change, change, 0, p=1))
    return Albumented(steps)


def erasing(config: DataConfig) -> Albumented:
    """`data.random_erasing`: a random value for each pixel, RE-R of Zhong et al. 2020, arXiv:1708.04896."""
    return Albumented([A.Erasing(fill="random", p=config.random_erasing)])


@functools.cache
def _refuse_other_packages() -> None:
    """Raise a `ConfigError` where another package overwrites the modules of albumentations."""
    for package in metadata.distributions():
        name = package.name.lower()
        if name == "albumentations" or "albumentations" not in name:
            continue
        if any(str(file) == "albumentations/__init__.py" for file in package.files or ()):
            raise ConfigError(
                f"the package {package.name} is installed, and overwrites albumentations {A.__version__} with other "
                f"random draws; run `pip uninstall {package.name}`, then "
                "`pip install --force-reinstall albumentations==2.0.8`"
            )
