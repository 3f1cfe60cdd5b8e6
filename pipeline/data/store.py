"""The store: every picture decoded and resized once, then served from memory-mapped bytes.

A store is a folder with `pixels.bin` (pictures end to end) and `index.csv` (one row a picture, in
the order of the sample table). Packed pixels are uint8 RGB, height x width x 3; a JPEG store holds
files of quality 95 instead, for when the disk is short.
"""

import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError

from pipeline import files, terminal
from pipeline.errors import DataError

Pixels = npt.NDArray[np.uint8]
JPEG_QUALITY = 95
JPEG_BYTES_PER_PIXEL = 0.8  # at quality 95, with a margin: what is asked of the disk beforehand


@dataclass(frozen=True)
class Layout:
    """How pictures stand in a store."""

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


class Store:
    """A store opened for reading; its pages are shared by all processes of the machine."""

    def __init__(self, folder: Path) -> None:
        """Raises: DataError: there is no store in `folder`."""
        if not (folder / "index.csv").is_file():
            raise DataError(f"{folder}: missing; run `make data`")
        self.folder = folder
        index = pd.read_csv(folder / "index.csv")
        self.ids = index["id"].to_numpy()
        self._offset = index["offset"].to_numpy()
        self._length = index["length"].to_numpy()
        self._shape = index[["store_height", "store_width"]].to_numpy()
        self._packed = folder.name.endswith("packed")
        self._bytes: Pixels = np.memmap(folder / "pixels.bin", np.uint8, mode="r")

    def __reduce__(self) -> tuple[type["Store"], tuple[Path]]:
        """Another process maps the file again; a pickled memory map would carry every pixel."""
        return Store, (self.folder,)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> Pixels:
        """The picture at `position`: uint8 [H, W, 3], RGB. Packed pixels are a read-only view."""
        start, length = self._offset[position], self._length[position]
        raw = self._bytes[start : start + length]
        if not self._packed:
            return np.asarray(cv2.imdecode(raw, cv2.IMREAD_COLOR_RGB), np.uint8)
        height, width = self._shape[position]
        return raw.reshape(height, width, 3)


def decode(content: bytes, target: tuple[int, int] | None = None) -> tuple[Pixels, bool]:
    """Decode a picture in full: uint8 [H, W, 3] RGB, and whether the file is greyscale.

    Raises OSError, SyntaxError or ValueError, as Pillow does, when the file is damaged.
    """
    with Image.open(io.BytesIO(content)) as picture:
        grey = picture.mode in ("1", "L", "LA", "I;16")
        if target is not None and not grey:
            # libjpeg scales by 1/2, 1/4 or 1/8 while decoding, never below the target.
            picture.draft("RGB", target)
        return np.asarray(picture.convert("RGB")), grey


def resized(picture: Pixels, width: int, height: int) -> Pixels:
    """Resize with anti-aliasing: area averages where it shrinks, then bicubic where it grows."""
    rows, columns = picture.shape[:2]
    if columns > width or rows > height:
        shrunk = min(columns, width), min(rows, height)
        picture = np.asarray(cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def build(table: pd.DataFrame, images: Path, folder: Path, layout: Layout) -> pd.DataFrame:
    """Decode, check and store every picture of a sample table; return the index with what was found.

    Threads do it, one a core and one more: decoding, resizing and writing release the interpreter.

    Args:
        table: needs `id` and `path`, the path relative to `images`.
        folder: of the store; it appears when every picture has gone in, and not before.

    Returns:
        One row a picture: id, offset, length, store_width, store_height, and table.PICTURE_COLUMNS.

    Raises:
        DataError: pictures do not decode (all are named), or the disk is too small.
    """
    paths = [images / path for path in table["path"]]
    sizes = _sizes(paths, layout)
    per_pixel = 3.0 if layout.format == "packed" else JPEG_BYTES_PER_PIXEL
    needed_bytes = int(sum(w * h for w, h in sizes) * per_pixel)
    terminal.say(f"store  {len(paths)} pictures will take {files.size_in_words(needed_bytes)} in {folder}")
    files.require_free(folder.parent, needed_bytes, "the store")
    try:
        with files.replacing_folder(folder) as part:
            index = _fill(part / "pixels.bin", paths, sizes, layout)
            index.insert(0, "id", table["id"].to_numpy())
            index.to_csv(part / "index.csv", index=False)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); free some space and run again"
        ) from error
    return index


def _sizes(paths: Sequence[Path], layout: Layout) -> list[tuple[int, int]]:
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


def _fill(
    path: Path, paths: Sequence[Path], sizes: Sequence[tuple[int, int]], layout: Layout
) -> pd.DataFrame:
    packed_lengths = np.array([3 * width * height for width, height in sizes], np.int64)
    offsets = np.concatenate([[0], np.cumsum(packed_lengths)[:-1]]).astype(np.int64)
    end = 0
    lock = threading.Lock()
    bad: list[str] = []

    def store_one(position: int) -> dict[str, Any] | None:
        nonlocal end
        width, height = sizes[position]
        try:
            content = paths[position].read_bytes()
            original = Image.open(io.BytesIO(content)).size
            pixels, grey = decode(content, (width, height))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            bad.append(f"{paths[position]}: {_reason(error)}")
            return None
        raw: Any = resized(pixels, width, height)
        offset = int(offsets[position])
        if layout.format == "jpeg":
            bgr = cv2.cvtColor(raw, cv2.COLOR_RGB2BGR)
            raw = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            with lock:
                offset, end = end, end + raw.nbytes
        _write_all(stream.fileno(), np.ascontiguousarray(raw).tobytes(), offset)
        return {
            "offset": offset,
            "length": raw.nbytes,
            "store_width": width,
            "store_height": height,
            "width": original[0],
            "height": original[1],
            "grey": grey,
            "file_bytes": len(content),
        }

    workers = (os.cpu_count() or 1) + 1
    rows = []
    with (
        path.open("wb") as stream,
        terminal.bar("store", len(paths)) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            for row in pool.map(store_one, range(len(paths))):
                rows.append(row)
                bar.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if bad:
        raise DataError(
            f"{len(bad)} of {len(paths)} pictures do not decode in full: {'; '.join(sorted(bad))}; "
            "bring good copies (for CUB: delete the unpacked folder and run `make data` again)"
        )
    return pd.DataFrame(rows)


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    """`os.pwrite` until all is written: a nearly full disk takes a part first and then refuses."""
    left = memoryview(content)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    return str(error) or type(error).__name__
