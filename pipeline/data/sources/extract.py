"""A tar, tar.gz or zip archive becomes a folder, and nothing outside that folder is touched.

Only files and folders are taken. A data set needs no links and no devices, and without links a
name is safe as soon as it is relative and has no `..`: so this holds on every Python version,
with or without the filters of `tarfile`. An archive is measured by what it writes.
"""

import errno
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, cast

from pipeline.common import console, files
from pipeline.common.errors import DataError

BLOCK_BYTES = 512
BUFFER_BYTES = 1 << 16
GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
MOST_GROWTH = 100
"""bytes written for a byte of the archive; packed text comes to 10, JPEGs to 1, a bomb to 1,000"""
SMALL_BYTES = 1 << 30
"""size up to which an archive may grow by any factor"""
ENTRY_BYTES = 4096
"""what a file or folder takes on the disk, and its headers at most in a tar"""
MOST_HEADER_BYTES = 1 << 26
"""bytes of a tar beyond its files and their usual headers"""
MOST_FOLDERS = 100
"""depth of a member's name"""
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError),
    *(ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError),  # of headers that mean nothing
)
"""what `tarfile` and `zipfile` raise for damaged archives (RuntimeError: also for a zip that has a password), besides
an `OSError` without `errno`, of bzip2"""


class _Compressed:
    """The archive's bytes as they are on the disk; reading them moves the bar."""

    def __init__(self, stream: IO[bytes], bar: console.Bar) -> None:
        self.stream, self.bar = stream, bar

    def read(self, count: int = -1) -> bytes:
        chunk = self.stream.read(count)
        self.bar.advance(len(chunk))
        return chunk


@dataclass(frozen=True)
class _Member:
    """A file or folder of an archive."""

    name: str
    size_bytes: int
    content: IO[bytes] | None
    """None: a folder"""
    problem: str | None = None
    """why it is not taken, whatever its name"""


@dataclass
class _Target:
    """The folder that an archive is unpacked to, and the bytes written so far."""

    archive: Path
    folder: Path
    written_bytes: int = 0
    parents: set[Path] = field(default_factory=set)

    def add(self, member: _Member) -> None:
        """Write a member.

        Raises:
            DataError: it would leave the folder, is neither file nor folder, or has no room.
        """
        if problem := _problem_of_name(member.name) or member.problem:
            raise DataError(
                f"{self.archive}: its member {member.name[:200]} {problem}, and only files and folders inside are "
                "unpacked; get the archive from its official source, or pack it again without that member"
            )
        self._measure(member)
        path = self.folder / member.name
        try:
            parent = path if member.content is None else path.parent
            if parent not in self.parents:
                parent.mkdir(parents=True, exist_ok=True)
                self.parents.add(parent)
            if member.content is not None:
                with path.open("wb") as out:
                    while chunk := self._read(member.content):
                        out.write(chunk)
        except OSError as error:
            if error.errno is None or error.filename == str(self.archive):  # of the archive
                raise
            raise self._not_written(error, member.name) from error

    def _read(self, content: IO[bytes]) -> bytes:
        """The next bytes of a member; the disk's error of reading them names the archive."""
        with _reading(self.archive):
            return content.read(BUFFER_BYTES)

    def _measure(self, member: _Member) -> None:
        self.written_bytes += member.size_bytes + ENTRY_BYTES
        most_bytes = max(MOST_GROWTH * self.archive.stat().st_size, SMALL_BYTES)
        if self.written_bytes > most_bytes:
            raise DataError(
                f"{self.archive}: unpacks to more than {files.size_in_words(most_bytes)}, with member "
                f"{member.name[:200]}, which no data set of pictures does; get it from its official source, or give "
                "the unpacked folder as data.archive"
            )
        if member.size_bytes > shutil.disk_usage(self.folder).free:
            raise self._not_written(OSError(errno.ENOSPC, ""), member.name)

    def _not_written(self, error: OSError, name: str) -> DataError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DataError(
                f"{self.archive}: the disk became full at {name[:200]}; free some space or set data.root to another "
                "disk, and run again"
            )
        return DataError(
            f"{self.archive}: its member {name[:200]} could not be written ({error.strerror}); check that the folder "
            "under data.root may be written to and that the archive is the official one"
        )


class _Plain:
    """The tar's bytes after decompression; remembers the last block, which has to be zeros."""

    def __init__(self, stream: IO[bytes], target: _Target) -> None:
        self.stream, self.target = stream, target
        self.last, self.read_bytes = b"", 0

    def read(self, count: int) -> bytes:
        chunk = self.stream.read(count)
        self.read_bytes += len(chunk)
        if self.read_bytes > self.target.written_bytes + MOST_HEADER_BYTES:
            raise ValueError(f"more than {files.size_in_words(MOST_HEADER_BYTES)} that are no file's")
        self.last = chunk[-BLOCK_BYTES:] if len(chunk) >= BLOCK_BYTES else (self.last + chunk)[-BLOCK_BYTES:]
        return chunk


def unpack(archive: Path, folder: Path) -> None:
    """Unpack `archive` into `folder`, which exists and is empty; the caller syncs it.

    Raises:
        DataError: the archive is truncated or no archive, a member would leave the folder or is neither file nor
            folder, the archive unpacks to far more than it holds, or the disk is full.
    """
    size_bytes = archive.stat().st_size
    files.require_free(folder, size_bytes, f"unpacking {archive.name}")
    target = _Target(archive, folder)
    try:
        with (
            _reading(archive),
            archive.open("rb") as stream,
            console.bar("unpack", total=size_bytes, unit="bytes") as bar,
        ):
            magic = stream.read(len(ZIP_MAGIC))
            stream.seek(0)
            if magic == ZIP_MAGIC:
                _unpack_zip(stream, bar, target)
            else:
                compressed = cast(IO[bytes], _Compressed(stream, bar))
                is_gzip = magic.startswith(GZIP_MAGIC)
                _unpack_tar(
                    cast(IO[bytes], gzip.GzipFile(fileobj=compressed) if is_gzip else compressed), target
                )
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{archive}: truncated, or not a tar, tar.gz or zip archive ({reason}); get a whole copy of it, or give the "
            "unpacked folder as data.archive"
        ) from error


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Name the archive in the system's errors of reading it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else it is damage
            error.filename = error.filename or str(archive)
        raise


def _unpack_tar(stream: IO[bytes], target: _Target) -> None:
    plain = _Plain(stream, target)
    # "r|" never seeks: a GzipFile that is asked to step back begins from its start again
    with tarfile.open(fileobj=cast(IO[bytes], plain), mode="r|", bufsize=BUFFER_BYTES) as tar:
        for member in tar:
            problem = _problem_in_tar(member)
            is_file = problem is None and member.isfile()
            content = cast(IO[bytes], tar.extractfile(member)) if is_file else None
            target.add(_Member(member.name, member.size, content, problem))
    while plain.read(BUFFER_BYTES):  # to the end: only there gzip compares its checksum
        pass
    if plain.last.strip(b"\0") or len(plain.last) < BLOCK_BYTES:
        raise EOFError("its end is missing")


def _unpack_zip(stream: IO[bytes], bar: console.Bar, target: _Target) -> None:
    """`zipfile` compares the size and the checksum of each member as it is read."""
    with zipfile.ZipFile(stream) as packed:
        for member in packed.infolist():
            if member.header_offset < 0:
                raise zipfile.BadZipFile(f"{member.filename} lies before the beginning of the archive")
            mode = stat.S_IFMT(member.external_attr >> 16)  # 0: packed where files have none
            is_link = mode not in (0, stat.S_IFREG, stat.S_IFDIR)
            problem = "is a link or a device" if is_link else None
            if member.is_dir():
                target.add(_Member(member.filename, 0, None, problem))
            else:
                with packed.open(member) as content:
                    target.add(_Member(member.filename, member.file_size, content, problem))
            bar.advance(member.compress_size)
        bar.advance(target.archive.stat().st_size - sum(member.compress_size for member in packed.infolist()))


def _problem_of_name(name: str) -> str | None:
    """Why a name does not lead to a place inside the target folder."""
    path = PurePosixPath(name)
    if path.is_absolute():
        return "has an absolute path"
    if ".." in path.parts or "\0" in name:
        return "leaves the folder it is unpacked to"
    if len(path.parts) > MOST_FOLDERS:
        return f"lies more than {MOST_FOLDERS} folders deep"
    return None


def _problem_in_tar(member: tarfile.TarInfo) -> str | None:
    """Why a member is not a plain file or folder."""
    if member.issym() or member.islnk():
        return f"is a link (to {member.linkname})"
    if member.issparse():
        return "is stored as a file with holes, which may be far larger than the archive"
    if not (member.isfile() or member.isdir()):
        return "is a device or a pipe"
    return None
