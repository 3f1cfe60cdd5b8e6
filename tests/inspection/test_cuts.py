"""What a crop leaves, against shares worked out by hand and against crops that are really drawn."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.data.transforms import Augmentation, CentreCrop
from pipeline.inspection import cuts
from tests.helpers import own_pictures


def table(*boxes: tuple[float, float, float, float], width: int = 200, height: int = 100) -> pd.DataFrame:
    return pd.DataFrame(boxes, columns=["box_x", "box_y", "box_w", "box_h"], dtype=float).assign(
        width=width, height=height
    )


def test_of_a_wide_picture_a_square_crop_at_the_short_side_keeps_half() -> None:
    setting = cuts.Setting("short_side", 100, 100)
    kept = cuts.of_pictures(table((0, 0, 1, 1)), setting)
    assert (kept.centre[0], kept.random[0], kept.random_least[0]) == (0.5, 0.5, 0.5)


def test_shares_of_boxes_worked_out_by_hand() -> None:
    """200 x 100, short side kept: the middle crop is 50..150; a random one begins at 0..100, equally likely.

    The box 0..100 loses half in the middle. Of a crop at t it holds 100 - t: half in the mean, nothing at worst.
    The box 50..150 is whole in the middle; at t it holds 100 - |t - 50|: three quarters in the mean, half at worst.
    The box 160..200 is never in the middle; at t it holds max(0, t - 60) of 40: 40 * 40 / 2 / 100 / 40 = 0.2.
    """
    samples = table((0, 0, 100, 100), (50, 20, 100, 30), (160, 0, 40, 50))
    kept = cuts.of_boxes(samples, cuts.Setting("short_side", 100, 100))
    assert kept.centre.tolist() == [0.5, 1, 0]
    assert kept.random.tolist() == [0.5, 0.75, 0.2]
    assert kept.random_least.tolist() == [0, 0.5, 0]


def test_squash_cuts_both_sides_alike_and_the_axes_multiply() -> None:
    """Squashed to 100 x 100 and cropped to 80: 10 of 100 is lost on each side; the box is a quarter, at the corner."""
    setting = cuts.Setting("squash", 100, 80)
    samples = table((0, 0, 100, 50))
    assert cuts.of_pictures(samples, setting).centre.tolist() == [0.64]
    kept = cuts.of_boxes(samples, setting)
    assert kept.centre.tolist() == [0.64]  # 40 of 50, twice
    assert kept.random.tolist() == [0.64]  # 50 - t of 50 for t in 0..20: 0.8 in the mean, twice
    assert kept.random_least.tolist() == [0.36]


def test_padding_is_no_part_of_the_picture() -> None:
    """100 px with borders of 10, cropped to 100: the middle crop is the picture; at a corner 90 x 90 of it are left."""
    kept = cuts.of_pictures(table((0, 0, 1, 1), width=100), cuts.Setting("squash", 100, 100, 10))
    assert kept.centre.tolist() == [1]
    assert kept.random_least.tolist() == [0.81]
    assert kept.random.tolist() == pytest.approx([0.95**2])


def test_what_of_a_box_lies_outside_the_picture_does_not_count_and_no_box_has_no_share() -> None:
    samples = table((-50, 0, 100, 100), (float("nan"),) * 4)
    kept = cuts.of_boxes(samples, cuts.Setting("squash", 100, 100))
    assert kept.centre[0] == 1
    assert np.isnan(kept.centre[1])
    assert np.isnan(cuts.by_random_resized(samples, cuts.Setting("squash", 100, 100), 0.25)[1][1])


@pytest.mark.parametrize("crop", ["random", "random_resized"])
@pytest.mark.parametrize("resize", ["squash", "short_side"])
def test_the_mean_is_that_of_crops_which_training_draws(crop: str, resize: str, tmp_path: Path) -> None:
    """A white box on black: the white share of real crops, times the crop's share of the picture, is what is kept."""
    config = own_pictures.config(
        "folder", tmp_path, resize=resize, resize_px=64, image_px=48, crop=crop, crop_area_min=0.5, flip=False
    )
    samples = table((120, 10, 60, 70))
    setting = cuts.Setting(config.resize, 64, 48)
    stored = np.zeros((64, 64 if resize == "squash" else 128, 3), np.uint8)
    scale = np.array([stored.shape[1] / 200, stored.shape[0] / 100])
    x0, y0 = np.round(np.array([120, 10]) * scale).astype(int)
    x1, y1 = np.round(np.array([180, 80]) * scale).astype(int)
    stored[y0:y1, x0:x1] = 255
    augment = Augmentation(config, seed=0)
    if crop == "random":
        area, expected = float((y1 - y0) * (x1 - x0)), cuts.of_boxes(samples, setting).random[0]
        shares = [(augment(stored, 0, draw) > 127).mean() * 48 * 48 / area for draw in range(1500)]
        centre = (CentreCrop(config)(stored, 0, 0) > 127).mean() * 48 * 48 / area
        assert centre == pytest.approx(cuts.of_boxes(samples, setting).centre[0], abs=0.03)
        assert np.mean(shares) == pytest.approx(expected, abs=0.03)
        return
    # a crop's area is not known after it is resized: pictures of columns' and rows' numbers tell it
    ramp = np.zeros_like(stored)
    ramp[..., 0] = np.arange(stored.shape[1])[None, :]
    ramp[..., 1] = np.arange(stored.shape[0])[:, None]
    shares = []
    for draw in range(1500):
        seen = augment(ramp, 0, draw).astype(float)
        (left, right), (top, bottom) = ((seen[..., c].min(), seen[..., c].max() + 1) for c in (0, 1))
        inside = max(0, min(x1, right) - max(x0, left)) * max(0, min(y1, bottom) - max(y0, top))
        shares.append(inside / ((x1 - x0) * (y1 - y0)))
    assert np.mean(shares) == pytest.approx(cuts.by_random_resized(samples, setting, 0.5)[1][0], abs=0.03)


def test_the_configured_setting_comes_first_and_none_comes_twice(tmp_path: Path) -> None:
    config = own_pictures.config("folder", tmp_path, resize="short_side", resize_px=256, image_px=224)
    settings = cuts.settings(config)
    assert settings[0] == cuts.Setting("short_side", 256, 224)
    assert len(settings) == len(set(settings)) == 6
