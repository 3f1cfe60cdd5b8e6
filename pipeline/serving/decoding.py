"""A file becomes the pixels that the model sees: by the functions of predict.py, to the bit those of the training."""

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.pictures import DAMAGE, Pixels, reason_of
from pipeline.export.standalone import crop_of_stream, is_heif
from pipeline.serving.limits import DecodingRoom, Limits

SCAN = b"\xff\xda"
MOST_SCANS = 100
"""of a progressive JPEG: each takes a pass over all its pixels; programs write some ten"""

warnings.filterwarnings("ignore", module="PIL")  # of metadata, and of sizes that are limited here


class Unreadable(Exception):
    """A file is not answered."""

    def __init__(self, status: int, reason: str) -> None:
        """status: of HTTP, were it the only file; reason: for the client."""
        super().__init__(reason)
        self.status, self.reason = status, reason


def crop_of(content: bytes, preprocessing: dict[str, Any], limits: Limits, room: DecodingRoom) -> Pixels:
    """uint8 [3, P, P], RGB, of the bytes of a file.

    Args:
        preprocessing: of the metadata of the export.
        room: of all threads; it is waited for, once the header says how much the picture takes.

    Raises:
        Unreadable: it is not a picture, damaged, has too many pixels, or pixels of a kind that predict.py refuses.
    """
    if not content:
        raise Unreadable(422, "an empty file")
    if is_heif(content):
        raise Unreadable(422, "HEIC, which this server does not read; save it as JPEG")
    try:
        pixels = _checked_pixels(content, preprocessing["formats"], limits)
        with room.holding(pixels):
            crop = crop_of_stream(io.BytesIO(content), preprocessing)
    except Image.DecompressionBombError:
        raise Unreadable(413, f"too many pixels; a picture may have {limits.pixels:,}") from None
    except DAMAGE as error:
        raise Unreadable(422, reason_of(error)) from error
    return np.ascontiguousarray(crop.transpose(2, 0, 1))


def _checked_pixels(content: bytes, formats: list[str], limits: Limits) -> int:
    """Width times height of a picture, as its header says: within the limits, like what else of it takes long."""
    with Image.open(io.BytesIO(content), formats=formats) as image:
        width, height, is_jpeg = *image.size, image.format in ("JPEG", "MPO")
    if width * height > limits.pixels:
        raise Unreadable(413, f"{width} x {height} pixels; a picture may have {limits.pixels:,}")
    if is_jpeg and content.count(SCAN) > MOST_SCANS:
        raise Unreadable(422, f"a JPEG of more than {MOST_SCANS} scans")
    return width * height
