"""What is measured of each stored picture: how bright, how sharp, how uniform it is, and its perceptual hash."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.audit import duplicates
from pipeline.common import console, hardware
from pipeline.data.image_store import Store, map_in_order
from pipeline.data.pictures import Pixels

Floats = npt.NDArray[np.float64]
SIDE_PX = 256  # at one size the measures of all pictures can be compared
BITS_A_CHANNEL = 4  # colours that differ in less count as one


class Measures(NamedTuple):
    """The measures of n pictures, in the order of the store."""

    brightness: Floats
    """mean of the grey values, 0..1: [n]"""
    sharpness: Floats
    """variance of the Laplacian of the grey values 0..255 (Pech-Pacheco et al., ICPR 2000): [n]; low: blurred"""
    one_colour: Floats
    """share of the pixels that are of the most frequent of 4,096 colours, 0..1: [n]"""
    hashes: duplicates.Bits
    """bool [n, 256]"""


def of(store: Store) -> Measures:
    """Measure every picture of a store, in as many threads as there are cores."""
    workers = hardware.cores()
    with console.bar("measures", len(store)) as bar, ThreadPoolExecutor(workers) as pool:
        rows = []
        for row in map_in_order(
            pool, lambda position: _measure(store[position]), range(len(store)), 4 * workers
        ):
            rows.append(row)
            bar.advance()
    brightness, sharpness, one_colour, hashes = zip(*rows, strict=True)
    return Measures(np.array(brightness), np.array(sharpness), np.array(one_colour), np.array(hashes))


def _measure(picture: Pixels) -> tuple[float, float, float, duplicates.Bits]:
    small = np.asarray(cv2.resize(picture, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), np.uint8)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    sharpness = float(cv2.Laplacian(grey, cv2.CV_64F).var())
    channels = (small >> (8 - BITS_A_CHANNEL)).astype(np.int64)
    colours = channels @ np.array([1 << 2 * BITS_A_CHANNEL, 1 << BITS_A_CHANNEL, 1])
    most = float(np.bincount(colours.ravel()).max()) / SIDE_PX**2
    return float(grey.mean()) / 255, sharpness, most, duplicates.hash_of(picture)
