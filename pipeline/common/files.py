"""Files appear whole or not at all; their digests.

A writer fills a neighbour of the final path, syncs it and renames it, so that a kill at any
moment leaves either what was there before or what was meant to be there. The neighbour's name
is the writer's own, so that two writers of one path do not meet; the last one to end wins.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.common.errors import DataError, refused

Content = TypeVar("Content")
CHUNK_BYTES = 1 << 20
RESTORE = "restore it from a copy, or fix it in an editor"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; when the block ends without an error it becomes `path`."""
    with _claimed(path) as claim:
        yield claim.part
        sync(claim.part)
        claim.part.replace(path)
        sync(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; when the block ends without an error it becomes `path`."""
    with _claimed(path) as claim:
        claim.part.mkdir()
        yield claim.part
        os.sync()  # for thousands of files, some twenty times as fast as one by one
        claim.put_in_place()
        sync(path.parent)


@dataclass(frozen=True)
class _Claim:
    """Names beside `path` that one process alone uses: NAME.RANDOM.part, .old and .lock, which it holds."""

    path: Path
    name: str

    @property
    def part(self) -> Path:
        """What is being written."""
        return self.path.with_name(f"{self.name}.part")

    @property
    def old(self) -> Path:
        """The folder that was at `path` before, until the new one is there."""
        return self.path.with_name(f"{self.name}.old")

    @property
    def lock(self) -> Path:
        return self.path.with_name(f"{self.name}.lock")

    def put_in_place(self) -> None:
        """Rename the new folder to `path`."""
        while True:
            with contextlib.suppress(FileNotFoundError):
                self.path.replace(self.old)
            try:
                self.part.replace(self.path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                _remove(self.old)  # another process has put its own there meanwhile
            else:
                return

    def withdraw(self) -> None:
        """Delete what is left of the claim; what was at `path` before returns where nothing has taken its place."""
        if self.old.exists() and not self.path.exists():
            self.old.replace(self.path)
        for left in (self.part, self.old, self.lock):
            _remove(left)


@contextmanager
def _claimed(path: Path) -> Iterator[_Claim]:
    """Yield a new claim, withdrawn as the block ends; those of killed processes, whose locks are free, go first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in _names_of_locks(path):
        with contextlib.suppress(OSError), path.with_name(name).open("rb+") as stream:  # gone, or not ours
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError while its process lives
            _Claim(path, name.removesuffix(".lock")).withdraw()
    claim, descriptor = _claim(path)
    before = sys.exc_info()[1]
    try:
        yield claim
    except Exception as error:
        if (first := _first_refusal(error, before)) is None:
            raise
        if first.filename in (None, str(claim.part)):
            first.filename, first.filename2 = str(path), None
        raise first from None  # the error of a library hides the one that it met
    finally:
        with contextlib.suppress(OSError):  # never in place of the error that ended the block
            claim.withdraw()
        os.close(descriptor)


def _first_refusal(error: BaseException, before: BaseException | None) -> OSError | None:
    """The earliest error that `errors.refused` knows, among an exception and those that it arose from.

    Args:
        before: the exception that was being handled when the block began; it has no part in this one.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link is not before and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return next((link for link in reversed(chain) if isinstance(link, OSError) and refused(link)), None)


def _names_of_locks(path: Path) -> list[str]:
    lock = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{8}}\.lock")
    return [entry.name for entry in path.parent.iterdir() if lock.fullmatch(entry.name)]


def _claim(path: Path) -> tuple[_Claim, int]:
    """A claim, and the descriptor that holds its lock."""
    while True:
        claim = _Claim(path, f"{path.name}.{secrets.token_hex(4)}")
        try:
            descriptor = os.open(claim.lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except OSError as error:
            error.filename = str(path)
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return claim, descriptor
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks, where nobody takes a claim away
            return claim, descriptor
        os.close(descriptor)  # a process that looks for claims to withdraw was faster


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, path: Path) -> None:
    """Give a file a second name: a hard link, or a copy where the file system has none."""
    try:
        path.hardlink_to(source.resolve())  # not of a symbolic link
    except OSError:
        shutil.copyfile(source, path)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, _as_json(value))


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def overwrite_json(path: Path, value: Any) -> None:
    """Write JSON over the content of a file: needs no room on the disk beyond it, and is not whole after a kill."""
    content = _as_json(value).encode()
    with path.open("rb+", buffering=0) as stream:
        stream.write(content)
        stream.truncate()


def read_json(path: Path, kind: type[Content], advice: str = RESTORE) -> Content:
    """Read a JSON file whose content is of a type: a dataclass, a `TypedDict`, `dict[str, Any]`.

    Fields that a dataclass does not have are left out: a later version may have written them.

    Args:
        advice: what to do when the file is damaged.

    Raises:
        DataError: the file is not JSON, or its content is not of this type.
    """
    content = path.read_bytes()
    try:
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        raise DataError(f"{path}: damaged ({first_fault(error)}); {advice}") from error


def first_fault(error: ValidationError) -> str:
    """The first thing that a `ValidationError` names: `attempts: Input should be a valid integer`."""
    fault = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([".".join(map(str, fault["loc"])), fault["msg"]] if fault["loc"] else [fault["msg"]])


def read_text(path: Path, advice: str = RESTORE) -> str:
    """Read a file of UTF-8 text.

    Raises:
        DataError: a byte is not UTF-8.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; {advice}") from error


def digest_of_file(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file's content."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def crc32_of_file(path: Path) -> str:
    """The CRC-32 of a file's content, 8 hexadecimal digits: finds damage, some times as fast as a digest."""
    checksum = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}"


def digest_of(value: Any) -> str:
    """The SHA-256 of a value of plain types: 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def require_free(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise a `DataError` when the disk under `folder` has less than `needed_bytes` left."""
    folder.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise DataError(
            f"{folder}: {purpose} needs {size_in_words(needed_bytes)} and "
            f"{size_in_words(free_bytes)} are free; free some space or set data.root to another disk"
        )


def size_in_words(size_bytes: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
