"""The store: every picture decoded and resized once, then served from memory-mapped bytes.

A store is a folder with `pixels.bin` (pictures end to end) and `index.csv` (one row a picture, in
the order of the sample table). Packed pixels are uint8 RGB, height x width x 3; a JPEG store holds
files of quality 95 instead, for when the disk is short.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import console, files, hardware
from pipeline.common.errors import DataError
from pipeline.data.pictures import DAMAGE, Layout, Pixels, make_entry, reason, sizes_in_store

Result = TypeVar("Result")
JPEG_BYTES_PER_PIXEL = 0.8  # at quality 95, with a margin, to see whether the disk has room


class Store:
    """A store opened for reading; its pages are shared by all processes of the machine."""

    def __init__(self, folder: Path, ids: npt.NDArray[np.int64] | None = None) -> None:
        """ids: int64 [n], the pictures to serve, in their order; None: all.

        Raises:
            DataError: there is no store in `folder`, or it lacks one of the pictures.
        """
        if not (folder / "index.csv").is_file():
            raise DataError(f"{folder}: missing; run `make data`")
        self.folder = folder
        index = pd.read_csv(folder / "index.csv")
        if ids is not None and not np.array_equal(ids, index["id"]):
            if not np.isin(ids, index["id"]).all():
                raise DataError(f"{folder}: holds other images than the sample table; run `make data`")
            index = index.set_index("id", drop=False).loc[ids]
        self.ids = index["id"].to_numpy()
        self._offset = index["offset"].to_numpy()
        self._length = index["length"].to_numpy()
        self._shape = index[["store_height", "store_width"]].to_numpy()
        self._packed = folder.name.endswith("packed")
        self._bytes: Pixels = np.memmap(folder / "pixels.bin", np.uint8, mode="r")

    def __reduce__(self) -> tuple[type["Store"], tuple[Path, npt.NDArray[np.int64]]]:
        """Another process maps the file again; a pickled memory map would carry every pixel."""
        return Store, (self.folder, self.ids)

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


def build(table: pd.DataFrame, images: Path, folder: Path, layout: Layout) -> pd.DataFrame:
    """Decode, check and store every picture of a sample table; return the store's index.

    It runs in threads, one more than there are cores: decoding, resizing and writing release the interpreter.

    Args:
        table: needs `id` and `path`, the path relative to `images`.
        folder: of the store; it appears when every picture has gone in, and not before.

    Returns:
        One row a picture: id, offset, length, store_width, store_height, and sample_table.PICTURE_COLUMNS.

    Raises:
        DataError: pictures do not decode (all are named), or the disk is too small.
    """
    paths = [images / path for path in table["path"]]
    sizes = sizes_in_store(paths, layout)
    per_pixel = 3.0 if layout.format == "packed" else JPEG_BYTES_PER_PIXEL
    needed_bytes = int(sum(w * h for w, h in sizes) * per_pixel)
    console.say(f"store  {len(paths)} pictures will take {files.size_in_words(needed_bytes)} in {folder}")
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


def _fill(
    path: Path, paths: Sequence[Path], sizes: Sequence[tuple[int, int]], layout: Layout
) -> pd.DataFrame:
    """Write the pictures end to end, in their order; the index, or one `DataError` for all that are bad."""
    rows: list[dict[str, int | bool]] = []
    bad: list[str] = []
    workers = hardware.cores() + 1

    def make(position: int) -> tuple[Pixels, dict[str, int | bool]] | str:
        try:
            return make_entry(paths[position], sizes[position], layout)
        except DAMAGE as error:
            return f"{paths[position]}: {reason(error)}"

    with (
        path.open("wb") as stream,
        console.bar("store", len(paths)) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        for entry in _map_in_order(pool, make, range(len(paths)), ahead=4 * workers):
            if isinstance(entry, str):
                bad.append(entry)
            else:
                content, facts = entry
                rows.append({"offset": stream.tell(), "length": content.nbytes, **facts})
                stream.write(content.data)
            bar.advance()
    if bad:
        raise DataError(
            f"{len(bad)} of {len(paths)} pictures do not decode in full: {'; '.join(bad)}; "
            "bring good copies (for CUB: delete the unpacked folder and run `make data` again)"
        )
    return pd.DataFrame(rows)


def _map_in_order(
    pool: ThreadPoolExecutor, function: Callable[[int], Result], items: Iterable[int], ahead: int
) -> Iterator[Result]:
    """`pool.map`, but at most `ahead` results wait to be taken: a slow disk must not fill the memory."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
