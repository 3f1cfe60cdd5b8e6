"""Views of test-time augmentation: where they look, and that each picture is averaged over all of them."""

import numpy as np
import pytest

from pipeline.config.data import DataConfig
from pipeline.data.tta import tta_crops

PX = 4


def crops(kind: str, height: int, width: int) -> list[np.ndarray]:
    """The views of a picture whose red is its row and whose green is its column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    picture = np.stack([rows, columns, np.zeros_like(rows)], axis=2)
    config = DataConfig(image_px=16, resize_px=16).model_copy(update={"image_px": PX})
    return [view(picture, 0, 0) for view in tta_crops(config, kind)]  # type: ignore[arg-type]


def place(view: np.ndarray) -> tuple[int, int, bool]:
    """Row and column of the crop's upper left corner, and whether it is mirrored."""
    assert view.shape == (PX, PX, 3)
    assert (np.diff(view[:, 0, 0].astype(int)) == 1).all()
    step = np.diff(view[0, :, 1].astype(int))
    assert (step == step[0]).all() and abs(step[0]) == 1
    return int(view[0, 0, 0]), int(view[0, :, 1].min()), bool(step[0] < 0)


def test_no_augmentation_is_the_centre_crop() -> None:
    assert [place(view) for view in crops("none", 8, 8)] == [(2, 2, False)]


def test_flip_adds_the_mirror_image() -> None:
    assert [place(view) for view in crops("flip", 8, 8)] == [(2, 2, False), (2, 2, True)]


@pytest.mark.parametrize(("height", "width", "top", "left"), [(8, 8, 0, 0), (8, 14, 0, 3), (15, 8, 3, 0)])
def test_ten_crops_are_centre_and_corners_of_the_central_square_and_their_mirror_images(
    height: int, width: int, top: int, left: int
) -> None:
    places = [place(view) for view in crops("ten_crop", height, width)]
    corners = [(top + down, left + right) for down in (0, 4) for right in (0, 4)]
    middle = ((height - PX) // 2, (width - PX) // 2)
    expected = {(*corner, mirrored) for corner in [middle, *corners] for mirrored in (False, True)}
    assert len(places) == 10
    assert set(places) == expected
