"""How much of a picture, and of the box in it, is left by resizing and cropping: computed from sizes, not from pixels.

Crops are uniform over all positions, as `data/transforms.py` draws them; positions and sides are taken as real
numbers, which differs from whole pixels by less than a pixel.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.config.data import DataConfig
from pipeline.data.pictures import Layout

Floats = npt.NDArray[np.float64]
CROP_OF_RESIZE = (1.0, 7 / 8, 3 / 4)  # 7/8 is 224 of 256, and 448 of 512
AREAS, RATIOS = 16, 12  # of a random_resized crop: the points at which its mean is taken
TRIES = 10  # of a random_resized crop to fit, in albumentations
DIGITS = 9  # what is whole is 1, whatever the rounding
LARGEST_RATIO = 4 / 3  # of its sides, see `data/transforms.py`


class Setting(NamedTuple):
    """A resizing and the crop of it."""

    resize: Literal["squash", "short_side"]
    resize_px: int
    crop_px: int
    pad_px: int = 0


class Kept(NamedTuple):
    """Shares of the pictures or boxes that are left, 0..1, float64 [n] each; not a number where there is no box."""

    centre: Floats
    """by the crop of evaluation"""
    random: Floats
    """by a random crop, the mean over its positions"""
    random_least: Floats
    """by a random crop at its worst position"""


class Axis(NamedTuple):
    """Spans in the stored pictures along x or y, in pixels of the store with its padding; float64 [n] each."""

    start: Floats
    length: Floats
    stored: Floats


def settings(config: DataConfig) -> list[Setting]:
    """The settings to compare, the configured one first: both ways of resizing, with crops of several sizes."""
    configured = Setting(config.resize, config.resize_px, config.image_px, config.pad_px)
    others = [
        Setting(resize, config.resize_px, round(share * config.resize_px))
        for resize in ("squash", "short_side")
        for share in CROP_OF_RESIZE
    ]
    return [configured, *(other for other in others if other != configured)]


def of_pictures(samples: pd.DataFrame, setting: Setting) -> Kept:
    """What a setting leaves of whole pictures, for the rows of the sample table."""
    axes = [
        Axis(np.full(len(size), float(setting.pad_px)), size, size + 2 * setting.pad_px)
        for size in _stored_sizes(samples, setting)
    ]
    return _kept(axes, setting.crop_px)


def of_boxes(samples: pd.DataFrame, setting: Setting) -> Kept:
    """What a setting leaves of the boxes, of which only what lies inside the picture counts."""
    return _kept(_box_axes(samples, setting), setting.crop_px)


def by_random_resized(samples: pd.DataFrame, setting: Setting, area_min: float) -> tuple[Floats, Floats]:
    """The mean shares that a random_resized crop leaves of the pictures, and of the boxes: float64 [n] each.

    Args:
        area_min: `data.crop_area_min`.
    """
    sizes = _stored_sizes(samples, setting)
    whole = [Axis(np.zeros(len(size)), size, size) for size in sizes]
    return _random_resized(whole, area_min), _random_resized(_box_axes(samples, setting), area_min)


def _stored_sizes(samples: pd.DataFrame, setting: Setting) -> list[Floats]:
    layout = Layout(setting.resize, setting.resize_px, "packed")
    widths, heights = samples["width"].tolist(), samples["height"].tolist()
    sizes = np.array(
        [layout.size(width, height) for width, height in zip(widths, heights, strict=True)], float
    )
    return [sizes[:, 0], sizes[:, 1]]


def _box_axes(samples: pd.DataFrame, setting: Setting) -> list[Axis]:
    axes = []
    ends = (("width", "box_x", "box_w"), ("height", "box_y", "box_h"))
    for stored, (side, start, length) in zip(_stored_sizes(samples, setting), ends, strict=True):
        original = samples[side].to_numpy(float)
        first = samples[start].to_numpy(float)
        last = np.clip(first + samples[length].to_numpy(float), 0, original)
        first = np.clip(first, 0, original)
        scale = stored / original
        axes.append(Axis(first * scale + setting.pad_px, (last - first) * scale, stored + 2 * setting.pad_px))
    return axes


def _kept(axes: Sequence[Axis], crop_px: float) -> Kept:
    """The shares of the rectangles whose sides are given as spans along x and y."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a box without an area
        parts = []
        for axis in axes:
            crop, slack = np.full(len(axis.stored), float(crop_px)), axis.stored - crop_px
            ends = np.minimum(_overlap(axis, crop, np.zeros(len(slack))), _overlap(axis, crop, slack))
            parts.append((_overlap(axis, crop, slack / 2), _mean_overlap(axis, crop, slack), ends))
        area = axes[0].length * axes[1].length
        return Kept(*(np.round(x * y / area, DIGITS) for x, y in zip(*parts, strict=True)))


def _overlap(axis: Axis, crop: Floats, at: Floats) -> Floats:
    """The length that a crop beginning at `at` has in common with the span."""
    end = np.minimum(axis.start + axis.length, at + crop)
    return np.asarray(np.maximum(end - np.maximum(axis.start, at), 0), float)


def _mean_overlap(axis: Axis, crop: Floats, slack: Floats) -> Floats:
    """The mean of `_overlap` over positions 0 to `slack`, at which all are equally likely.

    A point x of the span is in the crop at positions max(0, x - crop) to min(slack, x): the mean is the integral of
    their length over the span.
    """

    def integral(x: Floats) -> Floats:
        until_slack = np.where(x <= slack, x**2 / 2, slack * x - slack**2 / 2)
        return np.asarray(until_slack - np.maximum(x - crop, 0) ** 2 / 2, float)

    held = integral(axis.start + axis.length) - integral(axis.start)
    at_start = _overlap(axis, crop, np.zeros(len(slack)))
    return np.where(slack > 0, held / np.where(slack > 0, slack, 1), at_start)


def _random_resized(axes: Sequence[Axis], area_min: float) -> Floats:
    """The mean share over areas and ratios that fit; where no try does, the largest allowed crop, centred."""
    x, y = axes
    total, weight = np.zeros(len(x.start)), np.zeros(len(x.start))
    log_ratios = (np.arange(RATIOS) + 0.5) / RATIOS * 2 - 1
    for area in area_min + (1 - area_min) * (np.arange(AREAS) + 0.5) / AREAS:
        for ratio in LARGEST_RATIO**log_ratios:
            width = np.sqrt(area * x.stored * y.stored * ratio)
            height = width / ratio
            fits = (width <= x.stored) & (height <= y.stored)
            held = _mean_overlap(x, width, x.stored - width) * _mean_overlap(y, height, y.stored - height)
            total += np.where(fits, held, 0)
            weight += fits
    width = np.minimum(x.stored, y.stored * LARGEST_RATIO)
    height = np.minimum(y.stored, x.stored * LARGEST_RATIO)
    centred = _overlap(x, width, (x.stored - width) / 2) * _overlap(y, height, (y.stored - height) / 2)
    never = (1 - weight / (AREAS * RATIOS)) ** TRIES
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (1 - never) * total / np.maximum(weight, 1) + never * centred
        return np.round(mean / (x.length * y.length), DIGITS)
