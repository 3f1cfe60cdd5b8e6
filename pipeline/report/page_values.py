"""How names, shares and pictures stand in a page."""

import base64
import math
import re

import cv2
import numpy as np

from pipeline.data.pictures import Pixels

WEBP_QUALITY = 68


def readable(name: str) -> str:
    """`001.Black_footed_Albatross` -> `Black footed Albatross`."""
    return re.sub(r"^\d+\.", "", name).replace("_", " ")


def percent(value: float | None, digits: int = 1) -> str:
    """0.8187 -> `81.9 %`, with a space that does not break; `–` for what is not there."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def interval(low: float, high: float, digits: int = 1) -> str:
    """0.788, 0.847 -> `78.8 to 84.7 %`."""
    return f"{100 * low:.{digits}f} to {percent(high, digits)}"


def data_uri(pixels: Pixels) -> str:
    """Pixels uint8 [H, W, 3] RGB -> `data:image/webp;base64,...`."""
    bgr = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
    encoded, content = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    if not encoded:
        raise RuntimeError(f"OpenCV cannot write a WebP of {pixels.shape}")
    return "data:image/webp;base64," + base64.b64encode(content.tobytes()).decode("ascii")
