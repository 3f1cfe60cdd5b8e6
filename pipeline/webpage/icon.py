"""The icon of an installed page: a feather, drawn here."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Points = npt.NDArray[np.float64]
GROUND, FEATHER = "#0f6a73", "#fcfcfa"
FINER = 4
"""drawn so many times larger, then made smaller: smooth edges"""


def icon(side_px: int) -> bytes:
    """A square PNG without transparency; the feather keeps to the middle, as phones cut icons to circles."""
    side = side_px * FINER
    image = Image.new("RGB", (side, side), GROUND)
    drawing = ImageDraw.Draw(image)
    along = np.linspace(0, 1, 60)  # from the quill to the tip
    width = 0.115 * np.sin(np.pi * along**0.75) ** 0.7
    vane = np.concatenate([_turned(along, width, side), _turned(along[::-1], -width[::-1], side)])
    drawing.polygon([tuple(point) for point in vane], fill=FEATHER)
    shaft = _turned(np.array([-0.16, 0.9]), np.zeros(2), side)
    drawing.line([tuple(point) for point in shaft], fill=GROUND, width=round(side * 0.022))
    quill = _turned(np.array([-0.16, 0.02]), np.zeros(2), side)
    drawing.line([tuple(point) for point in quill], fill=FEATHER, width=round(side * 0.03))
    for start in (0.3, 0.52, 0.7):  # barbs that part
        slit = _turned(np.array([start, start + 0.13]), np.array([0.0, 0.14]), side)
        drawing.line([tuple(point) for point in slit], fill=GROUND, width=round(side * 0.016))
    stream = io.BytesIO()
    image.resize((side_px, side_px), Image.Resampling.BOX).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _turned(along: Points, across: Points, side: int) -> Points:
    """Points of the feather, which stands at 45 degrees, in pixels: [n, 2]."""
    up = np.array([0.46, -0.46])
    right = np.array([0.7, 0.7])
    start = np.array([0.3, 0.7])
    turned: Points = side * (start + along[:, None] * up + across[:, None] * right)
    return turned
