"""Files appear whole or not at all; digests; stages that are done carry a stamp.

A writer fills a neighbour of the final path, syncs it and renames it, so that a kill at any
moment leaves either what was there before or what was meant to be there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common.errors import DataError

CHUNK_BYTES = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; when the block ends without an error it becomes `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")  # an earlier, killed attempt is written over
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; when the block ends without an error it becomes `path`.

    What an earlier, killed attempt left beside `path` is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    old = path.with_name(path.name + ".old")
    if old.exists() and not path.exists():
        old.replace(path)  # an earlier attempt was killed between its two renames
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        os.sync()  # for thousands of files, some twenty times as fast as one by one
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.replace(old)
        part.replace(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a `DataError` names it when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); delete it and run again") from error


def digest_of_file(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file's content."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


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


def stamped(path: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether a finished stage left this stamp for the very same inputs."""
    return path.is_file() and bool(read_json(path).get("inputs") == digest_of(inputs))


def stamp(path: Path, inputs: Mapping[str, Any]) -> None:
    """Record that a stage is done: the digest of its inputs."""
    write_json(path, {"inputs": digest_of(inputs)})
