"""A folder or table that the user gave as the source keeps its prepared data when it is moved, renamed or not there.

The data prepared from it lie in PREFIX-DIGEST below `data.root`, with a record of the folder: where it was, the latest
place last, and a digest of its content: of its table, and of its pictures' names and sizes.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from pipeline.common import files
from pipeline.common.errors import DataError

RECORD = "source.json"


@dataclass(frozen=True)
class Record:
    """Which folder a data set was prepared from."""

    folders: list[str]
    """absolute paths, the latest last"""
    content: str
    """the digest of its contents at the latest preparation"""
    state: str = ""
    """the digest of what was prepared from it, with the times of its files, see `stages.Stamp.source`"""


RECORDS = TypeAdapter(Record)


def find(root: Path, prefix: str, folder: Path, content: Callable[[], str]) -> str | None:
    """The name of the prepared data of a folder, or None.

    They are those that were prepared from this path; or from a folder of the same content that is no longer where
    it was.

    Args:
        root: `data.root`.
        content: the digest of the folder's content; a `DataError` where the folder is not whole.
    """
    path = str(folder.resolve())
    records = {
        file.parent.name: record
        for file in sorted(root.glob(f"{prefix}-*/{RECORD}"))
        if (record := _read(file))
    }
    latest = [name for name, record in records.items() if record.folders[-1] == path]
    if latest:
        return latest[0]
    named = _named(prefix, folder)
    if named not in records and (root / named).is_dir():  # prepared by plumage 0.1, which kept no record
        return named
    moved = {name for name, record in records.items() if not Path(record.folders[-1]).exists()}
    found = _content(folder, content) if moved else None  # it may take a minute
    for name, record in records.items():
        if path in record.folders and not folder.exists():
            return name
        if record.content == found and name in moved:
            return name
    return None


def first_name(root: Path, prefix: str, folder: Path) -> str:
    """The name of data that are prepared from a folder for the first time."""
    name = named = _named(prefix, folder)
    number = 1
    while (root / named / RECORD).exists():  # of a folder that was here before, and was moved
        number += 1
        named = f"{name}-{number}"
    return named


def _named(prefix: str, folder: Path) -> str:
    return f"{prefix}-{files.digest_of(str(folder.resolve()))[:8]}"


def remember(prepared: Path, folder: Path, state: str, content: Callable[[], str]) -> None:
    """Record in a folder of prepared data which folder they were prepared from.

    Args:
        state: a digest of what they were prepared from; with that of the record, the content is not digested again.
        content: the digest of the folder's content.
    """
    path, record = str(folder.resolve()), _read(prepared / RECORD)
    earlier = [] if record is None else [each for each in record.folders if each != path]
    if record is None or record.state != state or record.folders != [*earlier, path]:
        files.write_json(prepared / RECORD, asdict(Record([*earlier, path], content(), state)))


def digest_of_content(table: pd.DataFrame, images: Path) -> str:
    """A digest of a sample table and of the sizes of its pictures; a moved or copied folder has the same.

    Args:
        images: the folder that the paths of the table are relative to.
    """

    def size_bytes(path: str) -> int | None:
        try:
            return (images / path).stat().st_size
        except OSError:  # is named where pictures are decoded
            return None

    return files.digest_of([table.to_csv(index=False), [size_bytes(path) for path in table["path"]]])


def fetched(prepared: Path) -> str | None:
    """The digest of the contents of the folder from which `raw` was made; None: there is none, or no record of it."""
    record = _read(prepared / RECORD)
    return record.content if record is not None and (prepared / "raw").is_dir() else None


def _content(folder: Path, content: Callable[[], str]) -> str | None:
    try:
        return content() if folder.exists() else None
    except DataError:
        return None


def _read(path: Path) -> Record | None:
    """A record; None: there is none, or it is damaged, which costs one preparation."""
    try:
        record = RECORDS.validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return record if record.folders else None
