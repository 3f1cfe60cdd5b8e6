"""Arrays on the disk: npz archives, complete or not at all; large ones are not read into memory, but mapped."""

import mmap
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.common import files
from pipeline.common.errors import DataError

MAPPED_FROM_BYTES = 256 << 20
BLOCK_ELEMENTS = 4 << 20  # 32 MiB in float64


def write_npz(path: Path, arrays: Mapping[str, Any], *, compress: bool = False) -> None:
    """Write arrays by their names as one npz archive, complete or not at all."""
    save = np.savez_compressed if compress else np.savez
    with files.replacing(path) as part, part.open("wb") as stream:
        save(stream, **arrays)


def read_npz(path: Path, names: Sequence[str], advice: str = files.RESTORE) -> list[npt.NDArray[Any]]:
    """The arrays of these names in an npz archive; one of 256 MiB or more is mapped into memory, read-only.

    Args:
        advice: what to do when the file is damaged.

    Raises:
        DataError: the file is damaged, or lacks one of them.
    """
    with path.open("rb") as stream:  # a file that may not be read is no damaged one
        try:
            with np.load(stream, allow_pickle=False) as stored:
                return [_array(stored, name, stream) for name in names]
        except Exception as error:  # numpy, zipfile and zlib raise some ten kinds for damaged bytes
            said = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path}: damaged, or without one of {list(names)} ({said}); {advice}") from error


def blocks(array: npt.NDArray[Any]) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Consecutive rows of an array [n, ...], some 4 million numbers at a time, with their slice: work that copies each
    row a few times then needs little memory, and a mapped array frees the memory of the rows that are done."""
    rows = max(1, BLOCK_ELEMENTS // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        at = slice(start, min(start + rows, len(array)))
        yield at, array[at]
        _forget(array)


def _array(stored: Any, name: str, stream: Any) -> npt.NDArray[Any]:
    """An array of an open npz archive."""
    archive: zipfile.ZipFile = stored.zip
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAPPED_FROM_BYTES:
        return np.asarray(stored[name])
    with archive.open(member) as content:
        version = np.lib.format.read_magic(content)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_columns, dtype = read_header(content)
        header_bytes = content.tell()
        while content.read(files.CHUNK_BYTES):  # to its end, where zipfile compares the checksum
            pass
    stream.seek(member.header_offset + 26)  # lengths of the name and the extra field, then these two
    offset = stream.tell() + 4 + sum(struct.unpack("<HH", stream.read(4))) + header_bytes
    return np.asarray(np.memmap(stream, dtype, "r", offset, shape, "F" if by_columns else "C"))


def _forget(array: npt.NDArray[Any]) -> None:
    """Free the memory of a mapped array; what is read again comes from the file."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
