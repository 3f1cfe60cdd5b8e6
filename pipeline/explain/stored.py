"""What is computed from predictions is kept beside them, with a stamp that names what it was made from.

The stamp also has the digests of the files, and goes before they are made: what is damaged, or left by a process that
was killed, is made again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common import files
from pipeline.common.errors import DataError


def is_kept(paths: Sequence[Path], inputs: Mapping[str, Any]) -> bool:
    """Whether files that were made together are there, as they were made, and from these inputs."""
    stamp = _stamp(paths)
    try:
        return stamp.is_file() and files.read_json(stamp, dict[str, Any]) == _content(paths, inputs)
    except (DataError, FileNotFoundError):
        return False


@contextmanager
def making(paths: Sequence[Path], inputs: Mapping[str, Any]) -> Iterator[None]:
    """Stamp files that the block makes together."""
    stamp = _stamp(paths)
    stamp.unlink(missing_ok=True)
    yield
    files.write_json(stamp, _content(paths, inputs))


def _stamp(paths: Sequence[Path]) -> Path:
    return paths[0].with_name(paths[0].name + ".stamp.json")


def _content(paths: Sequence[Path], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "inputs": files.digest_of(inputs),
        "sha256": {path.name: files.digest_of_file(path) for path in paths},
    }
