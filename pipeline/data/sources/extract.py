"""A tar or tar.gz archive becomes a folder, and nothing outside that folder is touched.

Only files and folders are taken. A data set needs no links and no devices, and without links a
name is safe as soon as it is relative and has no `..`: so this holds on every Python version,
with or without the filters of `tarfile`.
"""

import errno
import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, cast

from pipeline.common import console, files
from pipeline.common.errors import DataError

BLOCK_BYTES = 512
BUFFER_BYTES = 1 << 16
GZIP_MAGIC = b"\x1f\x8b"


class _Compressed:
    """The archive's bytes as they are on the disk; reading them moves the bar."""

    def __init__(self, stream: IO[bytes], bar: console.Bar) -> None:
        self.stream, self.bar = stream, bar

    def read(self, count: int = -1) -> bytes:
        chunk = self.stream.read(count)
        self.bar.advance(len(chunk))
        return chunk


class _Plain:
    """The archive's bytes after decompression; remembers the last block, which has to be zeros."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.last = stream, b""

    def read(self, count: int) -> bytes:
        chunk = self.stream.read(count)
        self.last = chunk[-BLOCK_BYTES:] if len(chunk) >= BLOCK_BYTES else (self.last + chunk)[-BLOCK_BYTES:]
        return chunk


def unpack(archive: Path, folder: Path) -> None:
    """Unpack `archive` into `folder`, which exists and is empty; the caller syncs it.

    A `DataError` names an archive that is truncated or no archive, a member that would leave the
    folder or is neither file nor folder, or a disk that is full.
    """
    size_bytes = archive.stat().st_size
    files.require_free(folder, size_bytes, f"unpacking {archive.name}")
    try:
        with archive.open("rb") as stream, console.bar("unpack", total=size_bytes, unit="bytes") as bar:
            is_gzip = stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            stream.seek(0)
            compressed = cast(IO[bytes], _Compressed(stream, bar))
            plain = gzip.GzipFile(fileobj=compressed) if is_gzip else compressed
            _unpack_stream(cast(IO[bytes], plain), archive, folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{archive}: truncated, or not a tar.gz archive ({error}); delete it and download it again"
        ) from error


def _unpack_stream(stream: IO[bytes], archive: Path, folder: Path) -> None:
    plain = _Plain(stream)
    parents: set[Path] = set()
    # "r|" never seeks: a GzipFile that is asked to step back begins from its start again
    with tarfile.open(fileobj=cast(IO[bytes], plain), mode="r|", bufsize=BUFFER_BYTES) as tar:
        for member in tar:
            _refuse_unsafe(member, archive)
            try:
                _write(tar, member, folder / member.name, parents)
            except gzip.BadGzipFile:
                raise
            except OSError as error:
                raise _not_written(error, archive, member.name) from error
    while plain.read(BUFFER_BYTES):  # to the end: only there gzip compares its checksum
        pass
    if plain.last.strip(b"\0") or len(plain.last) < BLOCK_BYTES:
        raise EOFError("its end is missing")


def _refuse_unsafe(member: tarfile.TarInfo, archive: Path) -> None:
    """Raise a `DataError` for a member that is not a plain file or folder inside the target folder."""
    path = PurePosixPath(member.name)
    if path.is_absolute():
        problem = "has an absolute path"
    elif ".." in path.parts or "\0" in member.name:
        problem = "leaves the folder it is unpacked to"
    elif member.issym() or member.islnk():
        problem = f"is a link (to {member.linkname})"
    elif not (member.isfile() or member.isdir()):
        problem = "is a device or a pipe"
    else:
        return
    raise DataError(
        f"{archive}: its member {member.name} {problem}, and only files and folders inside are "
        "unpacked; get the archive from its official source, or pack it again without that member"
    )


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, parents: set[Path]) -> None:
    parent = path if member.isdir() else path.parent
    if parent not in parents:
        parent.mkdir(parents=True, exist_ok=True)
        parents.add(parent)
    if member.isfile():
        content = cast(IO[bytes], tar.extractfile(member))
        with path.open("wb") as out:
            shutil.copyfileobj(content, out, BUFFER_BYTES)


def _not_written(error: OSError, archive: Path, name: str) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"{archive}: the disk became full at {name}; free some space or set data.root to another "
            "disk, and run again"
        )
    return DataError(
        f"{archive}: its member {name} could not be written ({error.strerror}); check that the folder "
        "under data.root may be written to and that the archive is the official one"
    )
