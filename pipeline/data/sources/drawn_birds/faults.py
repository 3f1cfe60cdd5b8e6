"""Known faults in a drawn data set, so that the audit can be tested: near-copies and wrong labels.

The truth lies beside CUB's lists, one line a fault: `duplicates.txt` (id of the copy, id of its
original) and `flipped_labels.txt` (id of the image, number of the species it really shows).
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.common import seeding

CROP = 0.02  # of the original's sides, at most, from each of the four
SCALES = 0.75, 1.0  # of what is left
GAINS = 0.9, 1.1  # of its brightness
QUALITIES = 60, 90  # of its JPEG

# path, box (x, y, w, h in pixels), parts (x, y in pixels, visible)
Row = tuple[str, tuple[float, float, float, float], tuple[tuple[float, float, int], ...]]


def duplicate(root: Path, rows: Sequence[Row], species: int, share: float, seed: int) -> list[Row]:
    """Replace a share of the pictures by near-copies of another one of their species.

    A copy is cropped a little, scaled, brighter or darker, and compressed anew. Returns the rows with the copies' boxes
    and parts; row i is image i + 1.
    """
    planted = list(rows)
    truth = []
    for (copies, originals), rng in _choose("duplicate", len(rows), species, share, seed):
        for copy, original in zip(copies, rng.choice(originals, len(copies)), strict=True):
            planted[copy] = _near_copy(root / "images", rows[original], rows[copy][0], rng)
            truth.append((copy + 1, original + 1))
    _write(root / "duplicates.txt", truth)
    return planted


def flip_labels(root: Path, species: int, share: float, seed: int) -> None:
    """List a share of the images under another species, any of the others with the same chance."""
    path = root / "image_class_labels.txt"
    labels = [int(line.split()[1]) for line in path.read_text(encoding="ascii").splitlines()]
    truth = []
    for (flipped, _), rng in _choose("flip", len(labels), species, share, seed):
        for image in flipped:
            truth.append((image + 1, labels[image]))
            labels[image] = (labels[image] - 1 + int(rng.integers(1, species))) % species + 1
    _write(path, list(enumerate(labels, 1)))
    _write(root / "flipped_labels.txt", truth)


def _choose(
    fault: str, images: int, species: int, share: float, seed: int
) -> list[tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], np.random.Generator]]:
    """The chosen and the other images (rows) of each species, in even shares, and its random generator."""
    cuts = np.floor(np.linspace(0, round(share * images), species + 1) + 1e-9).astype(int)
    chosen = []
    for number, (rows, count) in enumerate(
        zip(np.array_split(np.arange(images), species), np.diff(cuts), strict=True), 1
    ):
        rng = seeding.generator(fault, seed, number)
        order = rng.permutation(rows)
        chosen.append(((np.sort(order[:count]), np.sort(order[count:])), rng))
    return chosen


def _near_copy(images: Path, original: Row, path: str, rng: np.random.Generator) -> Row:
    picture = cv2.imread(str(images / original[0]), cv2.IMREAD_UNCHANGED)
    assert picture is not None, "the drawing that was just written"
    rows, columns = picture.shape[:2]
    cut = rng.uniform(0, CROP, 4)
    left, top = round(cut[0] * columns), round(cut[1] * rows)
    kept = picture[top : rows - round(cut[2] * rows), left : columns - round(cut[3] * columns)]
    scale = rng.uniform(*SCALES)
    width, height = round(kept.shape[1] * scale), round(kept.shape[0] * scale)
    small = cv2.resize(kept, (width, height), interpolation=cv2.INTER_AREA)
    bright = cv2.convertScaleAbs(small, alpha=rng.uniform(*GAINS))
    quality = int(rng.integers(*QUALITIES))
    _, jpeg = cv2.imencode(".jpg", bright, [cv2.IMWRITE_JPEG_QUALITY, quality])
    (images / path).write_bytes(jpeg.tobytes())

    def moved(x: float, y: float) -> tuple[float, float]:
        return (x - left) * width / kept.shape[1], (y - top) * height / kept.shape[0]

    x, y, w, h = original[1]
    corners = np.clip([moved(x, y), moved(x + w, y + h)], 0, (width, height))
    parts = []
    for px, py, visible in original[2]:
        at = moved(px, py)
        inside = bool(visible) and 0 <= at[0] < width and 0 <= at[1] < height
        parts.append((*at, 1) if inside else (0.0, 0.0, 0))
    return path, (*corners[0].tolist(), *(corners[1] - corners[0]).tolist()), tuple(parts)


def _write(path: Path, pairs: Sequence[tuple[int, int]]) -> None:
    """Write `a b` lines, as CUB's lists are; no file without pairs."""
    if pairs:
        path.write_text("".join(f"{a} {b}\n" for a, b in pairs), encoding="ascii", newline="\n")
