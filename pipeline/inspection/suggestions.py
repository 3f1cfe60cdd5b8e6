"""Values to begin with, each by a stated rule. Only training images choose: neither validation nor test is looked at."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
import torch

from pipeline.common import hardware
from pipeline.common.files import size_in_words
from pipeline.config.schema import Config
from pipeline.config.training import TrainConfig

STEP_PX = 32  # networks halve a picture five times
LARGEST_PX = {"cuda": 448, "cpu": 224}
CROP_OF_RESIZE = 7 / 8  # 224 of 256, 448 of 512
LARGEST_BATCH, SMALLEST_BATCH = 64, 8
STEPS_AN_EPOCH = 20
BYTES_AN_IMAGE = 0.17 * 2**30  # of ResNet-50 at 448 px in bf16: docs/gpu.md
FLOAT32 = 2  # times the bytes of bf16
USABLE = 0.85  # of the memory that is free
FEW_IMAGES = 10  # of a class
UNEVEN = 5  # times as many images in the largest class as in the smallest


class Suggestion(NamedTuple):
    """A value for a key of the configuration, or the recipe, and the rule that gave it."""

    key: str
    value: str | int
    rule: str


def suggest(samples: pd.DataFrame, config: Config) -> list[Suggestion]:
    """Suggest the image size, the batch size, the recipe, and what few or uneven images ask for.

    Args:
        samples: the sample table, of which only rows of train are used.
    """
    train = samples[samples["split"] == "train"]
    if train.empty:
        return []
    here = device(config.train)
    image_px, why = image_size(train, here.type)
    batch_size, why_batch = batch_size_for(len(train), image_px, here.type, hardware.free_bytes(here))
    return [
        Suggestion("data.image_px", image_px, why),
        Suggestion("data.resize_px", round(image_px / CROP_OF_RESIZE), "8/7 of image_px, as 256 is of 224"),
        Suggestion("optim.batch_size", batch_size, why_batch),
        _recipe(config, here.type),
        *for_classes(train["label"].value_counts()),
    ]


def device(train: TrainConfig) -> torch.device:
    """Where a training would compute."""
    return torch.device("cuda" if train.device != "cpu" and torch.cuda.is_available() else "cpu")


def image_size(train: pd.DataFrame, device_type: str) -> tuple[int, str]:
    """The side of the crop in pixels, and its rule."""
    median = float(train[["width", "height"]].min(axis=1).median())
    largest = LARGEST_PX[device_type]
    side = max(STEP_PX, min(largest, int(median // STEP_PX) * STEP_PX))
    where = "a GPU" if device_type == "cuda" else "a CPU"
    return side, (
        f"the largest multiple of {STEP_PX} that is at most the median short side of the training images "
        f"({median:.0f} px), and at most {largest} on {where}"
    )


def batch_size_for(images: int, image_px: int, device_type: str, free_bytes: int) -> tuple[int, str]:
    """The images of a step, and the rule."""
    each = BYTES_AN_IMAGE * (image_px / 448) ** 2 * (FLOAT32 if device_type == "cpu" else 1)
    most = min(images / STEPS_AN_EPOCH, USABLE * free_bytes / each)
    size = LARGEST_BATCH
    while size > SMALLEST_BATCH and size > most:
        size //= 2
    return size, (
        f"a power of two from {SMALLEST_BATCH} to {LARGEST_BATCH} that leaves {STEPS_AN_EPOCH} steps an epoch of "
        f"{images:,} images, and that fits into {size_in_words(USABLE * free_bytes)} of memory at "
        f"{size_in_words(each)} an image (ResNet-50 at {image_px} px)"
    )


def _recipe(config: Config, device_type: str) -> Suggestion:
    if device_type == "cpu":
        return Suggestion("recipe", "configs/cub200_mobilenetv2_cpu.yaml", "without a GPU: a small network")
    if config.data.source == "cub200":
        return Suggestion("recipe", "configs/cub200_resnet50.yaml", "with a GPU, for CUB-200-2011")
    return Suggestion("recipe", "configs/own_pictures.yaml", "with a GPU: ResNet-50 from ImageNet weights")


def for_classes(counts: "pd.Series[int]") -> list[Suggestion]:
    """What to set where training images are few, or where classes have very different numbers of them.

    Args:
        counts: training images of each class that has some.
    """
    found = []
    if (median := float(counts.median())) < FEW_IMAGES:
        found.append(
            Suggestion(
                "optim.frozen_stages",
                3,
                f"half of the classes have {median:g} training images or fewer, and {FEW_IMAGES} are few: the first "
                "stages stay as they were pretrained",
            )
        )
    if counts.max() >= UNEVEN * counts.min():
        found.append(
            Suggestion(
                "data.sampler",
                "class_balanced",
                f"the largest class has {counts.max() / counts.min():.3g} times the training images of the smallest, "
                f"and {UNEVEN} times is uneven",
            )
        )
    return found


def as_mapping(suggestions: list[Suggestion]) -> Mapping[str, str | int]:
    """The values by key."""
    return {one.key: one.value for one in suggestions}
