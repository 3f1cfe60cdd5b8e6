"""A stage makes one output, a file or a folder: one process at a time, under a stamp that names what it made.

The stamp goes when the new output is whole and takes its place, and comes back behind it. A kill at any moment
leaves the earlier output with its stamp, or an output that is made anew.
"""

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.common import console, files, signals
from pipeline.common.errors import DataError, Stopped, named
from pipeline.common.locks import Lock

VERSION = 1  # raise it when a stage's output changes for the same inputs
POLL_S = 0.5
SAY_AGAIN_S = 60.0  # between two lines of a process that waits for another one
WAIT_MINUTES = 120.0
LOCK = "prepare.lock"


@dataclass(frozen=True)
class FileRecord:
    """A file as a stage left it."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class LargeFileRecord:
    """A file as a stage left it that takes a checksum while it is written."""

    bytes: int
    crc32: str


@dataclass(frozen=True)
class FolderRecord:
    """A folder of many files as a stage left it."""

    files: int
    bytes: int


@dataclass(frozen=True)
class Stamp:
    """What stands beside an output. A stamp of plumage 0.1 holds `inputs` alone."""

    inputs: str
    """the digest of what it was made from"""
    source: str = ""
    """the digest of the source's files; the sample table and the stores of one state of a source have the same"""
    made: dict[str, FileRecord | LargeFileRecord] | FolderRecord | None = None
    """the files, by name"""


STAMP = TypeAdapter(Stamp)


@dataclass(frozen=True)
class Stage:
    """One output and how it is made."""

    name: str
    output: Path
    inputs: Mapping[str, Any]
    """what it is made from, in plain types"""
    make: Callable[[Path], Mapping[str, str] | None]
    """writes the output to a path; of a folder, into that folder, which is empty; may return the CRC-32 of files, by
    name, which it took as it wrote them"""
    kind: type[FileRecord] | type[FolderRecord] = FileRecord
    """how its stamp describes it: file by file, or as a whole"""
    is_folder: bool = True
    source: str = ""

    @property
    def inputs_digest(self) -> str:
        """The digest that a stamp of these inputs holds."""
        return files.digest_of({"version": VERSION, **self.inputs})

    def due(self, verify: bool = False) -> str | None:
        """Why the output has to be made (anew), or None: it is as the stamp says.

        Args:
            verify: compare the digests of all files, too.
        """
        if not self.output.exists():
            return "missing"
        stamp = read_stamp(self.output)
        if stamp is None:
            return "not finished"
        if stamp.inputs != self.inputs_digest:
            return "made from other inputs"
        if self.kind is FolderRecord:
            return None  # what the source's own folder holds is the user's matter, see `changes`
        return changes(self.output, verify) if stamp.made is not None else "made by an earlier version"

    def run(self, wait_minutes: float = WAIT_MINUTES, verify: bool = False) -> None:
        """Make the output if it is due, and wait for another process that prepares the same data set.

        Raises:
            DataError: the other process took too long.
        """
        if self.due(verify) is not None:
            with turn(self.output.parent, wait_minutes):
                if why := self.due(verify):  # the other process may have made it
                    if why != "missing":
                        console.say(f"{self.name}  {self.output} is made anew: {why}")
                    self._make()
                    return
        console.say(f"{self.name}  {self.output} is up to date")

    def _make(self) -> None:
        stamp = stamp_of(self.output)
        replacing = files.replacing_folder if self.is_folder else files.replacing
        with replacing(self.output) as part:
            checksums = self.make(part)
            made = _describe(part, self.output.name, self.kind, checksums or {})
            stamp.unlink(missing_ok=True)
        write_stamp(self.output, Stamp(self.inputs_digest, self.source, made))


@dataclass(frozen=True)
class Removal:
    """An output of ours that an earlier state of the source asked for, and that of today does not."""

    name: str
    output: Path

    def due(self, verify: bool = False) -> str | None:  # noqa: ARG002  # as of a stage
        """Why the output has to go, or None: it is not there, or somebody else's."""
        is_ours = self.output.exists() and stamp_of(self.output).exists()
        return "the source has none now" if is_ours else None

    def run(self, wait_minutes: float = WAIT_MINUTES, verify: bool = False) -> None:  # noqa: ARG002  # as of a stage
        """Remove the output and its stamp, if they are there.

        Raises:
            DataError: another process prepares the same data set, and took too long.
        """
        if self.due() is None:
            return
        with turn(self.output.parent, wait_minutes):
            if self.due() is None:
                return
            self.output.unlink(missing_ok=True)
            stamp_of(self.output).unlink(missing_ok=True)
        console.say(f"{self.name}  {self.output} is removed, which `data` had made: the source has none now")


@contextmanager
def turn(folder: Path, wait_minutes: float) -> Iterator[None]:
    """Hold the lock of a data set's folder; a wait is said, again each minute, and ends.

    Raises:
        DataError: another process held it for `wait_minutes`.
        Stopped: a signal came that `signals.deferred` has put off.
    """
    path, deadline, said = folder / LOCK, time.monotonic() + 60 * wait_minutes, -math.inf
    while (lock := Lock.wait(path, POLL_S)) is None:
        now, holder = time.monotonic(), _holder(path)
        if now > deadline:
            raise DataError(
                f"{folder}: {holder} has been preparing this data set for {wait_minutes:g} minutes; look at "
                "what it does (it may be suspended), or set distributed.data_timeout_minutes higher"
            )
        if name := signals.requested():
            raise Stopped(f"stopped by {name}, waiting for {holder}; the same command resumes")
        if now - said > SAY_AGAIN_S:
            said = now
            console.say(
                f"waiting for {holder}, which prepares {folder}; at most {(deadline - now) / 60:.3g} minutes "
                "more, and stopping this one loses nothing"
            )
    try:
        with named(path):
            path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        lock.close()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[:200] or "another process"
    except OSError:
        return "another process"


def stamp_of(output: Path) -> Path:
    """Where the stamp of an output is."""
    return output.with_name(output.name + ".stamp.json")


def read_stamp(output: Path) -> Stamp | None:
    """The stamp of an output; None: there is none, or it is damaged."""
    try:
        return STAMP.validate_json(stamp_of(output).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_stamp(output: Path, stamp: Stamp) -> None:
    """Write the stamp of an output that is whole."""
    files.write_json(stamp_of(output), asdict(stamp))


def stamp_as_it_is(output: Path) -> None:
    """Write a stamp for an output that no stage made."""
    write_stamp(output, Stamp("", made=_describe(output, output.name, FileRecord, {})))


def changes(output: Path, verify: bool = False) -> str | None:
    """How an output differs from what its stamp says it was, or None.

    Tables are compared by digest, other files by size alone, which takes no time.

    Args:
        verify: compare all files by digest. Of a folder as a whole, the number of files and bytes are compared
            whatever this says.
    """
    stamp = read_stamp(output)
    if stamp is None or stamp.made is None:
        return None
    if isinstance(stamp.made, FolderRecord):
        found = _describe_folder(output)
        return (
            None
            if found == stamp.made
            else f"{_in_words(found)}, and it was made with {_in_words(stamp.made)}"
        )
    for name, made in stamp.made.items():
        path = output / name if output.is_dir() else output
        try:
            size = path.stat().st_size
            if size != made.bytes:
                return f"{name} has {size:,} bytes, and was made with {made.bytes:,}"
            if (verify or path.suffix == ".csv") and not _has_content(path, made):
                return f"{name} has other content than it was made with"
        except FileNotFoundError:
            return f"{name} is missing"
    return None


def _has_content(path: Path, made: FileRecord | LargeFileRecord) -> bool:
    if isinstance(made, LargeFileRecord):
        return files.crc32_of_file(path) == made.crc32
    return files.digest_of_file(path) == made.sha256


def has_digests(output: Path) -> bool:
    """Whether the stamp of an output says what its files are: plumage 0.1 kept no record of them."""
    stamp = read_stamp(output)
    return stamp is not None and stamp.made is not None


def digest_of_made(output: Path) -> str | None:
    """A digest of an output's files as its stamp describes them; None where it does not, as of plumage 0.1."""
    stamp = read_stamp(output)
    return None if stamp is None or stamp.made is None else files.digest_of(asdict(stamp)["made"])


def _describe(
    path: Path, name: str, kind: type[FileRecord] | type[FolderRecord], checksums: Mapping[str, str]
) -> dict[str, FileRecord | LargeFileRecord] | FolderRecord:
    """Args: name: of the output, in case that it is a file; checksums: CRC-32 of files, by name."""
    if kind is FolderRecord:
        return _describe_folder(path)
    made = {each.name: each for each in sorted(path.iterdir())} if path.is_dir() else {name: path}
    return {
        name: LargeFileRecord(each.stat().st_size, checksums[name])
        if name in checksums
        else FileRecord(each.stat().st_size, files.digest_of_file(each))
        for name, each in made.items()
    }


def _describe_folder(path: Path) -> FolderRecord:
    sizes = [each.lstat().st_size for each in path.rglob("*") if not each.is_dir()]
    return FolderRecord(len(sizes), sum(sizes))


def _in_words(record: FolderRecord) -> str:
    return f"{record.files:,} files of {record.bytes:,} bytes"
