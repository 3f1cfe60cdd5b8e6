"""What a command line names becomes picture files: files, folders, patterns, and names from standard input."""

import glob
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.common.errors import DataError
from pipeline.data.sources.class_folders import list_folder

FROM_STDIN = Path("-")


def expand(names: Iterable[Path]) -> list[Path]:
    """The picture files of each name, in the order of the names.

    A folder becomes the pictures below it, by their names: nested, sorted folder by folder, hidden ones left out; links
    are followed unless they lead back to a folder above. A pattern that no shell has expanded (`*`, `?`, `[`, and `**`
    for any depth) becomes what it matches, sorted. `-` becomes the names that standard input lists: one a line, or each
    with a NUL behind it, as `find -print0` writes them. Any other name stays as it is, whether there is a file or not.

    Raises:
        DataError: a folder holds no picture.
    """
    given = list(names)
    return [
        path
        for name in given
        for one in (_listed() if name == FROM_STDIN else [name])
        for match in _matches(one)
        for path in _files(match)
    ]


def _listed() -> list[Path]:
    content = sys.stdin.buffer.read()
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [Path(os.fsdecode(name)) for name in names if name]


def _matches(name: Path) -> list[Path]:
    text = str(name)
    if os.path.lexists(text) or not glob.has_magic(text):
        return [name]
    return [Path(match) for match in sorted(glob.glob(text, recursive=True))] or [name]  # noqa: PTH207  # keeps "./"


def _files(path: Path) -> list[Path]:
    try:
        is_folder = path.is_dir()
    except OSError:  # a name that is too long, say: decoding names what is wrong with it
        is_folder = False
    if not is_folder:
        return [path]
    pictures = [path.joinpath(*parts) for parts in list_folder(path).pictures]
    if not pictures:
        raise DataError(f"{path}: a folder without pictures; name one that holds some, or picture files")
    return pictures
