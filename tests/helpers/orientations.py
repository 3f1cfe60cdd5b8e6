"""Pictures whose EXIF orientation says how they are turned, and the formats that can say it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from pipeline.data.pictures import FORMATS, Pixels

# where row 0 and column 0 of the file are in the scene, by the definition of the tag (EXIF 2.3, section 4.6.4)
AS_STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: upright[::-1].swapaxes(0, 1),  # left, bottom
}
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "AVIF": "avif", "HEIF": "heic"}
THERE = [name for name in SUFFIXES if name in FORMATS]
BEST = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIF": {"quality": -1, "chroma": 444},
}


def as_shown(stored: Pixels, orientation: int) -> Pixels:
    """The upright picture of stored pixels [H, W, 3]: the inverse of `AS_STORED`."""
    return AS_STORED[{6: 8, 8: 6}.get(orientation, orientation)](stored)


def save(path: Path, stored: Pixels, orientation: int, format_: str) -> None:
    """Write stored pixels [H, W] or [H, W, 3] with an orientation, losslessly or as well as the format can."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    image.save(path, format_, exif=exif.tobytes(), **BEST.get(format_, {}))
