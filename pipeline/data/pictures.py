"""A picture's file becomes uint8 RGB pixels, the same for `data`, `eval`, `predict` and heat maps."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipeline.common.errors import DataError

Pixels = npt.NDArray[np.uint8]
JPEG_QUALITY = 95
DAMAGE = OSError, SyntaxError, ValueError, Image.DecompressionBombError  # what Pillow raises for bad pictures

cv2.setNumThreads(0)  # one picture is one thread's work, here and in loader processes


@dataclass(frozen=True)
class Layout:
    """How a store holds its pictures."""

    resize: Literal["squash", "short_side"]
    resize_px: int
    format: Literal["packed", "jpeg"]

    @property
    def name(self) -> str:
        """The folder's name: "store-squash512-packed"."""
        return f"store-{self.resize}{self.resize_px}-{self.format}"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in the store, in pixels, of a picture of this width and height."""
        if self.resize == "squash":
            return self.resize_px, self.resize_px
        scale = self.resize_px / min(width, height)
        return max(self.resize_px, round(width * scale)), max(self.resize_px, round(height * scale))


def decode(content: bytes, target: tuple[int, int] | None = None) -> tuple[Pixels, dict[str, int | bool]]:
    """Decode a picture in full: uint8 [H, W, 3] RGB; and its width, height, and whether it is grey.

    Raises OSError, SyntaxError or ValueError, as Pillow does, when the file is damaged.
    """
    with Image.open(io.BytesIO(content)) as picture:
        width, height = picture.size
        grey = picture.mode in ("1", "L", "LA", "I;16")
        if target is not None and not grey:
            # libjpeg scales by 1/2, 1/4 or 1/8 while decoding, never below the target.
            picture.draft("RGB", target)
        pixels = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    return pixels, {"width": width, "height": height, "grey": grey}


def resized(picture: Pixels, width: int, height: int) -> Pixels:
    """Resize with anti-aliasing: area averages where it shrinks, then bicubic where it grows."""
    rows, columns = picture.shape[:2]
    if columns > width or rows > height:
        shrunk = min(columns, width), min(rows, height)
        picture = np.asarray(cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def picture(path: Path, layout: Layout) -> Pixels:
    """A picture as a store of this layout gives it back: uint8 [H, W, 3], RGB.

    Raises:
        DataError: it does not decode in full.
    """
    try:
        pixels, _ = make_entry(path, sizes_in_store([path], layout)[0], layout)
    except DAMAGE as error:
        raise DataError(f"{path}: {reason(error)}; give a picture such as a JPEG or PNG file") from error
    if layout.format == "jpeg":
        return np.asarray(cv2.imdecode(pixels, cv2.IMREAD_COLOR_RGB), np.uint8)
    return pixels


def make_entry(path: Path, size: tuple[int, int], layout: Layout) -> tuple[Pixels, dict[str, int | bool]]:
    """A picture as it goes into the store (pixels [H, W, 3], or JPEG's bytes [n]), and its row of the index."""
    content = path.read_bytes()
    pixels, facts = decode(content, size)
    pixels = np.ascontiguousarray(resized(pixels, *size))
    if layout.format == "jpeg":
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        pixels = np.asarray(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1], np.uint8)
    width, height = size
    return pixels, {"store_width": width, "store_height": height, **facts, "file_bytes": len(content)}


def sizes_in_store(paths: Sequence[Path], layout: Layout) -> list[tuple[int, int]]:
    """Width and height in the store for each picture; headers are read only where they matter."""
    if layout.resize == "squash":
        return [layout.size(1, 1)] * len(paths)
    sizes = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                sizes.append(layout.size(*picture.size))
        except (OSError, SyntaxError, ValueError):
            sizes.append((0, 0))  # _fill names it, with all others
    return sizes


def reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    return str(error) or type(error).__name__
