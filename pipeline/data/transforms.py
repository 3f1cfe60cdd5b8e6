"""The crop of a picture that training sees, and the one that evaluation sees: albumentations, seeded image by image.

Albumentations 2.0.8 gives every loader process the same random stream in every epoch. Here each
image has a stream of its own, named by (seed, epoch, index), so what happens to it depends neither on
the number of processes or ranks, nor on whether a run was interrupted. All transforms of an image draw
from that one stream in turn: `Compose.set_random_seed` would give each of them the same first number,
and the mirror image would be a function of the crop.
"""

import functools
import os
import random
from collections.abc import Callable
from importlib import metadata

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for news

import albumentations as A
import cv2
import numpy as np
import torch

from pipeline.common import seeding
from pipeline.common.errors import ConfigError
from pipeline.config.data import DataConfig
from pipeline.data.pictures import Pixels


class Augmentation:
    """Random crop, mirror, colour and more for training: [H, W, 3] -> [P, P, 3], uint8 RGB.

    P is `data.image_px`, or what `data.progressive` says for the epoch: then the same crop, scaled down.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        _refuse_other_packages()
        self.config, self.seed = config, seed
        size = config.image_px, config.image_px
        steps = _padding(config)
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
            change = config.color_jitter
            steps.append(
                A.ColorJitter(
                    (1 - change, 1 + change), (1 - change, 1 + change), (1 - change, 1 + change), 0, p=1
                )
            )
        self._compose = A.Compose(steps)
        # a random value for each pixel: RE-R of Zhong et al. 2020, arXiv:1708.04896
        erase = A.Erasing(fill="random", p=config.random_erasing)
        self._erase = A.Compose([erase] if config.random_erasing else [])
        self._automatic = _automatic(config.auto_augment)

    def __call__(self, picture: Pixels, epoch: int, index: int) -> Pixels:
        """The picture of draw `index` as training sees it in `epoch`."""
        stream = _stream(self.seed, epoch, index)
        self._compose.set_random_state(*stream)
        crop = np.asarray(self._compose(image=picture)["image"], np.uint8)
        if self._automatic is not None:
            crop = _apply_seeded(self._automatic, crop, seed=int(stream[0].integers(2**63)))
        self._erase.set_random_state(*stream)
        crop = np.asarray(self._erase(image=crop)["image"], np.uint8)
        side_px = self.image_px(epoch)
        if side_px < self.config.image_px:
            crop = np.asarray(cv2.resize(crop, (side_px, side_px), interpolation=cv2.INTER_AREA), np.uint8)
        return crop

    def image_px(self, epoch: int) -> int:
        """Side of a training image in an epoch (from 0): progressive resizing (Howard 2018, fast.ai)."""
        stage = self.config.stage(epoch)
        return stage.image_px if stage else self.config.image_px


def _stream(seed: int, epoch: int, index: int) -> tuple[np.random.Generator, random.Random]:
    """The random numbers of one draw; a transform of albumentations takes them from either generator."""
    seed = seeding.seed_of("augment", seed, epoch, index)
    return np.random.default_rng(seed), random.Random(seed)


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


def _padding(config: DataConfig) -> list[A.BasicTransform]:
    """`data.pad_px` of black on each side."""
    return [A.Pad(config.pad_px, fill=0)] if config.pad_px else []


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
        changed = operation(torch.from_numpy(picture).permute(2, 0, 1))
    finally:
        torch.set_rng_state(before)
    return np.ascontiguousarray(changed.permute(1, 2, 0).numpy())


class CentreCrop:
    """The middle of the picture, for evaluation: [H, W, 3] -> [image_px, image_px, 3], uint8 RGB."""

    def __init__(self, config: DataConfig) -> None:
        _refuse_other_packages()
        self._side_px = config.image_px
        self._compose = A.Compose([*_padding(config), A.CenterCrop(config.image_px, config.image_px)])

    def __call__(self, picture: Pixels, epoch: int, index: int) -> Pixels:  # noqa: ARG002
        """The same crop for every epoch and index."""
        return np.asarray(self._compose(image=picture)["image"], np.uint8)

    def image_px(self, epoch: int) -> int:  # noqa: ARG002
        """Side of an image, whatever the epoch."""
        return self._side_px
