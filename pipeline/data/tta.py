"""Test-time augmentation: the crops of a picture that evaluation averages over."""

from typing import Literal

from pipeline.config.data import DataConfig
from pipeline.data.pictures import Pixels
from pipeline.data.transforms import CentreCrop, mirror

Kind = Literal["none", "flip", "ten_crop"]


class Mirrored(CentreCrop):
    """The middle of the picture, mirrored left to right."""

    def __call__(self, picture: Pixels, epoch: int, index: int) -> Pixels:
        """The same for every epoch and index: [image_px, image_px, 3], uint8 RGB."""
        return mirror(super().__call__(picture, epoch, index))


class Corner(CentreCrop):
    """A corner of the picture's central square, as it is or mirrored."""

    def __init__(self, config: DataConfig, bottom: bool, right: bool, mirrored: bool) -> None:
        super().__init__(config)
        self._bottom, self._right, self._mirrored = bottom, right, mirrored

    def __call__(self, picture: Pixels, epoch: int, index: int) -> Pixels:  # noqa: ARG002
        """The same for every epoch and index: [image_px, image_px, 3], uint8 RGB."""
        height, width = picture.shape[:2]
        side, px = min(height, width), self._side_px
        top = (height - side) // 2 + (side - px) * self._bottom
        left = (width - side) // 2 + (side - px) * self._right
        corner = picture[top : top + px, left : left + px]
        return mirror(corner) if self._mirrored else corner


def tta_crops(config: DataConfig, kind: Kind) -> list[CentreCrop]:
    """The crops of each picture that evaluation predicts, one pass over the data each.

    none: the centre crop. flip: it and its mirror image. ten_crop: the centre and the four corners of
    the stored picture's central square, and the mirror images of all five (Krizhevsky et al. 2012).
    """
    middle: list[CentreCrop] = [CentreCrop(config)]
    if kind == "none":
        return middle
    middle.append(Mirrored(config))
    if kind == "flip":
        return middle
    sides = (False, True)
    corners = [
        Corner(config, bottom, right, mirrored) for bottom in sides for right in sides for mirrored in sides
    ]
    return [*middle, *corners]
