"""The store: every picture decoded and resized once, then served from memory-mapped bytes.

A store is a folder with `pixels.bin` (pictures end to end) and `index.csv` (one row a picture, in
the order of the sample table). Packed pixels are uint8 RGB, height x width x 3; a JPEG store holds
files of quality 95 instead, for when the disk is short.
"""

import errno
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import console, files, hardware
from pipeline.common.errors import RUN_DATA, DataError, name_some, named, refused
from pipeline.data.pictures import WHAT_TO_GIVE, Layout, PictureError, Pixels, make_entry, stored_pixels

Item = TypeVar("Item")
Result = TypeVar("Result")
INDEX_COLUMNS = ["id", "offset", "length", "store_width", "store_height"]
PIXELS = "pixels.bin"
SKIPPED = "skipped.csv"
GOOD_COPIES = f"put good copies in their place ({WHAT_TO_GIVE}) and run again"
VERIFY = "run `plumage data --verify`, which makes it anew"
JPEG_BYTES_PER_PIXEL = 0.8  # at quality 95, with a margin, to see whether the disk has room
BYTES_BETWEEN_SYNCS = 64 << 20


class Store:
    """A store opened for reading; its pages are shared by all processes of the machine."""

    def __init__(
        self, folder: Path, ids: npt.NDArray[np.int64] | None = None, opened: tuple[int, ...] | None = None
    ) -> None:
        """Open a store, whose index has to fit its pixels.

        Args:
            ids: int64 [n], the pictures to serve, in their order; None: all.
            opened: what tells the file of pixels from one that was made anew, where another process opened it before.

        Raises:
            DataError: there is no whole store in `folder`, it lacks one of the pictures, or it was made anew.
        """
        self.folder = folder
        index = _read_index(folder)
        self._bytes, self._opened = _map(folder / PIXELS)
        if opened is not None and opened != self._opened:
            raise DataError(f"{folder}: was made anew while this run used it; start the run again")
        self._packed = "-packed" in folder.name  # see `prepare.output_paths`
        if damage := _damage(index, len(self._bytes), self._packed):
            raise DataError(f"{folder}: {damage}; {RUN_DATA}, which makes it anew")
        if ids is not None and not np.array_equal(ids, index["id"]):
            if not np.isin(ids, index["id"]).all():
                raise DataError(f"{folder}: holds other images than the sample table; {RUN_DATA}")
            index = index.set_index("id", drop=False).loc[ids]
        self.ids = index["id"].to_numpy()
        self._offset = index["offset"].to_numpy()
        self._length = index["length"].to_numpy()
        self._shape = index[["store_height", "store_width"]].to_numpy()

    def __reduce__(self) -> tuple[type["Store"], tuple[Path, npt.NDArray[np.int64], tuple[int, ...]]]:
        """Another process maps the file again; a pickled memory map would carry every pixel."""
        return Store, (self.folder, self.ids, self._opened)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> Pixels:
        """The picture at `position`: uint8 [H, W, 3], RGB. Packed pixels are a read-only view."""
        start, length = self._offset[position], self._length[position]
        raw = self._bytes[start : start + length]
        height, width = self._shape[position]
        if self._packed:
            return raw.reshape(height, width, 3)
        picture = cv2.imdecode(raw, cv2.IMREAD_COLOR_RGB)
        if picture is None or picture.shape != (height, width, 3):
            raise DataError(f"{self.folder}: the picture of image {self.ids[position]} is damaged; {VERIFY}")
        return np.asarray(picture, np.uint8)


def _read_index(folder: Path) -> pd.DataFrame:
    """The columns of numbers, int64."""
    path = folder / "index.csv"
    try:
        return pd.read_csv(path, usecols=INDEX_COLUMNS, dtype="int64")
    except FileNotFoundError as error:
        raise DataError(f"{folder}: missing; {RUN_DATA}") from error
    except (ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged ({reason}); {RUN_DATA}, which makes it anew") from error


def _map(path: Path) -> tuple[Pixels, tuple[int, ...]]:
    """A file in memory, read-only, and what tells it from one that takes its place."""
    try:
        with path.open("rb") as stream:
            state = os.fstat(stream.fileno())
            pixels: Pixels = np.memmap(stream, np.uint8, mode="r")
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; {RUN_DATA}") from error
    except ValueError as error:
        raise DataError(f"{path}: empty; {RUN_DATA}, which makes it anew") from error
    return pixels, (state.st_ino, state.st_size, state.st_mtime_ns)


def _damage(index: pd.DataFrame, size_bytes: int, packed: bool) -> str | None:
    """What makes an index unfit for pixels of this size, or None."""
    if duplicates := index.loc[index["id"].duplicated(), "id"].tolist():
        return f"index.csv lists image ids {name_some(duplicates)} more than once"
    if (index[["length", "store_width", "store_height"]] <= 0).to_numpy().any() or (
        index["offset"] < 0
    ).any():
        return "index.csv has a number that is too small"
    beyond = index["offset"] > size_bytes - index["length"]
    if packed:
        area = index["store_width"].astype(float) * index["store_height"]
        beyond |= index["length"] != 3 * area
    if beyond.any():
        ids = name_some(index.loc[beyond, "id"].tolist())
        return f"the pictures of image ids {ids} are not whole in pixels.bin of {size_bytes:,} bytes"
    return None


@dataclass(frozen=True)
class Built:
    """What `build` made: the index as it stands in the store, and the CRC-32 of the file of pixels, by its name."""

    index: pd.DataFrame
    checksums: dict[str, str]


def build(
    table: pd.DataFrame,
    images: Path,
    folder: Path,
    layout: Layout,
    skip_bad: bool = False,
    originals: Callable[[], Mapping[str, str]] = dict,
    what_next: str = GOOD_COPIES,
) -> Built:
    """Decode, check and store every picture of a sample table.

    It runs in threads, one more than there are cores: decoding, resizing and writing release the interpreter.

    Args:
        table: needs `id` and `path`, the path relative to `images`.
        folder: of the store, existing and empty.
        skip_bad: leave pictures that do not decode out of the index, and list them in `SKIPPED`: path, reason.
        originals: gives what the user knows pictures as, by path, where `images` holds copies.
        what_next: to do about pictures that do not decode.

    Returns:
        The index, one row a picture (id, offset, length, store_width, store_height, and
        sample_table.PICTURE_COLUMNS), and the checksum of the pixels.

    Raises:
        DataError: pictures do not decode (all are named), or with `skip_bad` none does, or the disk or the memory is
            too small.
        OSError: the system does not let a picture be read, which says nothing of the picture.
    """
    paths = [images / path for path in table["path"]]
    per_pixel = 3.0 if layout.format == "packed" else JPEG_BYTES_PER_PIXEL
    needed_bytes = int(stored_pixels(paths, layout) * per_pixel)
    console.say(
        f"store  {len(paths)} pictures will take {files.size_in_words(needed_bytes)} in {folder.parent}"
    )
    files.require_free(folder.parent, needed_bytes, "the store")
    index, bad, checksum = _fill(folder / PIXELS, paths, layout)
    if bad and (not skip_bad or len(bad) == len(paths)):
        raise _not_decoded(table["path"], images, bad, originals(), what_next)
    if skip_bad:
        skipped = {"path": table["path"].iloc[list(bad)].tolist(), "reason": list(bad.values())}
        pd.DataFrame(skipped).to_csv(folder / SKIPPED, index=False)
    index.insert(0, "id", np.delete(table["id"].to_numpy(), list(bad)))
    index.to_csv(folder / "index.csv", index=False)
    return Built(index, {PIXELS: checksum})


def _not_decoded(
    paths: pd.Series, images: Path, bad: Mapping[int, str], originals: Mapping[str, str], what_next: str
) -> DataError:
    """The error that names all bad pictures; `bad` has the reasons, by position in `paths`."""
    named_bad = []
    for row, reason in bad.items():
        original = originals.get(path := paths.iloc[row])
        named_bad.append(f"{images / path}{f' ({original})' if original else ''}: {reason}")
    return DataError(
        f"{len(bad)} of {len(paths)} pictures do not decode in full: {'; '.join(named_bad)}; {what_next}, or leave "
        "them out with data.on_bad=skip"
    )


class _Appending:
    """A file that grows: its checksum is taken as it is written, and the disk takes it while pictures are decoded."""

    def __init__(self, stream: BinaryIO, pool: ThreadPoolExecutor) -> None:
        """pool: waits for the disk."""
        self._stream, self._pool = stream, pool
        self._crc32, self._size_bytes = 0, 0
        self._sync: Future[None] | None = None
        self._synced_bytes = 0

    def append(self, content: Pixels) -> int:
        """Write content; return where it begins.

        Raises:
            OSError: this write failed, or the disk did not take an earlier one.
        """
        begins = self._size_bytes
        self._stream.write(content.data)
        self._crc32 = zlib.crc32(content.data, self._crc32)
        self._size_bytes += content.nbytes
        if self._size_bytes - self._synced_bytes >= BYTES_BETWEEN_SYNCS and (
            self._sync is None or self._sync.done()
        ):
            self._await_disk()
            self._sync = self._pool.submit(os.fsync, self._stream.fileno())
            self._synced_bytes = self._size_bytes
        return begins

    def checksum(self) -> str:
        """The CRC-32 of all that was written, when the disk has taken what it was told to."""
        self._await_disk()
        return f"{self._crc32:08x}"

    def _await_disk(self) -> None:
        if self._sync is not None:
            self._sync.result()


def _fill(path: Path, paths: Sequence[Path], layout: Layout) -> tuple[pd.DataFrame, dict[int, str], str]:
    """Write the pictures end to end, in their order.

    Returns:
        The index of the good ones; why others are bad, by position; the CRC-32 of the file.
    """
    rows: list[dict[str, int | bool]] = []
    bad: dict[int, str] = {}
    workers = hardware.cores() + 1

    def make(position: int) -> tuple[Pixels, dict[str, int | bool]] | str:
        try:
            return make_entry(paths[position], layout)
        except PictureError as error:
            _raise_unless_damaged(error, paths[position])
            return str(error).removeprefix(f"{paths[position]}: ")

    with (
        path.open("wb") as stream,
        console.bar("store", len(paths)) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        pixels = _Appending(stream, pool)
        for row, entry in enumerate(map_in_order(pool, make, range(len(paths)), ahead=4 * workers)):
            if isinstance(entry, str):
                bad[row] = entry
            else:
                content, facts = entry
                rows.append({"offset": pixels.append(content), "length": content.nbytes, **facts})
            bar.advance()
        checksum = pixels.checksum()
    return pd.DataFrame(rows), bad, checksum


def _raise_unless_damaged(error: PictureError, path: Path) -> None:
    """Raise what lies in the machine (no permission, a failing disk, no memory): it passes, and the picture is good."""
    cause = error.__cause__
    if isinstance(cause, MemoryError):
        raise DataError(
            f"{path}: no memory is left to decode it; end some programs and run again, or, where there is memory, put "
            "a good copy in its place"
        ) from cause
    if isinstance(cause, OSError) and cause.errno != errno.ENAMETOOLONG and refused(cause) is not None:
        with named(path):
            raise cause


def map_in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`pool.map`, but at most `ahead` results wait to be taken: a slow disk must not fill the memory."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
