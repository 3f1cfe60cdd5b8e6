"""Source `folder`: a folder of class folders, with or without folders train, val and test above them.

    birds/robin/1.jpg                  a test is drawn
    birds/train/robin/1.jpg            with test/: official splits; without: a test is drawn of train/
    birds/val/robin/2.jpg              validates

Unlike torchvision's ImageFolder, which takes pictures of any depth and ignores what else there is, a folder that could
mean two things is refused in a sentence, and what is left out is said.
"""

import os
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pipeline.common import files
from pipeline.common.errors import DataError, name_some
from pipeline.data.sample_table import EITHER
from pipeline.data.sources.own_pictures import (
    SPLIT_NAMES,
    OwnPictures,
    check_classes,
    finish,
    refuse,
    shown,
    twins,
    unwritable,
)

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "tif", "tiff", "bmp", "dib", "gif"),
        *("ppm", "pgm", "pbm", "pnm", "avif", "heic", "heif"),
    )
)
"""endings of files that are taken as pictures, whatever the case; one that cannot be read is an error"""
HIDDEN_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
"""what systems leave in folders, beside names that begin with a dot"""
IN_A_TABLE = "list pictures and classes in a table (data.source=csv)"
Parts = tuple[str, ...]


@dataclass
class Listing:
    """What a folder holds; the parts of each path, relative to the folder, sorted."""

    pictures: list[Parts] = field(default_factory=list)
    others: list[Parts] = field(default_factory=list)
    """files that are no pictures by their names, and what is hidden"""
    folders: list[Parts] = field(default_factory=list)
    loops: list[Parts] = field(default_factory=list)
    """links that lead back to a folder above them"""

    @property
    def splits(self) -> dict[str, str]:
        """The folders at the top that are splits, with the split of each; empty: those at the top are classes."""
        named = {
            top[0]: SPLIT_NAMES[top[0].casefold()]
            for top in self.folders
            if len(top) == 1 and top[0].casefold() in SPLIT_NAMES
        }
        holds_folders = any(len(parts) == 2 and parts[0] in named for parts in self.folders)
        return named if holds_folders else {}


class ClassFolders(OwnPictures):
    """Pictures in folders, one a class."""

    prefix = "folder"

    def find_root(self, raw: Path) -> Path:  # noqa: ARG002  # nothing is fetched
        """The folder, which is there and does not hold `data.root`."""
        if not self.given.is_dir():
            what = "a file, and no folder" if self.given.exists() else "no such folder"
            raise DataError(f"{self.given}: {what}; set data.path to the folder that holds the class folders")
        self.check_root_is_outside()
        return self.given

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table; one `DataError` lists every problem of the folder."""
        listing = list_folder(root)
        refuse(root, problems_of(root, listing))
        table = table_of(listing)
        check_classes(table, root, self.config.test_fraction)
        return table

    def digest(self, root: Path) -> str:
        """The SHA-256 of the pictures' paths."""
        listing = list_folder(root)
        paths = ["/".join(parts) for parts in listing.pictures]
        refuse(root, _unwritable(listing))
        return files.digest_of({"paths": paths})

    def remarks(self, root: Path) -> list[str]:
        """Files that are no pictures by their names."""
        others = ["/".join(parts) for parts in list_folder(root).others]
        return others and [f"{root}: left out, for by their names they are no pictures: {shown(others)}"]


def list_folder(folder: Path) -> Listing:
    """Walk through a folder; links are followed."""
    listing = Listing()
    real = Path(os.path.realpath(folder))
    _walk(folder, (), frozenset(map(str, [real, *real.parents])), listing)
    return listing


def _walk(folder: Path | str, parts: Parts, above: frozenset[str], listing: Listing) -> None:
    """Args: above: the real paths of the folder and of those that lead to it."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            here = (*parts, entry.name)
            real = os.path.realpath(entry.path) if entry.is_symlink() else None
            is_folder = _is_folder(entry)
            if entry.name.startswith(".") or (is_folder and entry.name in HIDDEN_FOLDERS):
                listing.others.append(here)
            elif is_folder:
                real = real or os.path.realpath(entry.path)
                if real in above:
                    listing.loops.append(here)
                    continue
                listing.folders.append(here)
                _walk(entry.path, here, above | {real}, listing)
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                listing.pictures.append(here)
            else:
                listing.others.append(here)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle: no folder, and a picture that is named where it is decoded
        return False


def problems_of(root: Path, listing: Listing) -> list[str]:
    """What makes a folder unclear or unusable, a sentence each: what; what to do next."""
    if loops := _joined(listing.loops):
        return [f"links that lead back to a folder above them: {shown(loops)}; take them out of the folder"]
    if not listing.pictures:
        endings = "jpg, png, ..."
        return [f"no picture in it, by the names of its files ({endings}); check data.path"]
    if unwritables := _unwritable(listing):
        return unwritables
    return [*_misplaced(root, listing), *_twins(listing)]


def _unwritable(listing: Listing) -> list[str]:
    bad = unwritable(_joined([*listing.pictures, *listing.folders]))
    return bad and [
        f"names that are no UTF-8 or hold a carriage return: {shown(bad)}; rename them (a copy of the folder will do)"
    ]


def _misplaced(root: Path, listing: Listing) -> list[str]:
    """Pictures above or below the class folders, class folders without a picture, classes beside splits."""
    problems = []
    splits = listing.splits
    depth = 2 if splits else 1
    if beside := [top[0] for top in listing.folders if splits and len(top) == 1 and top[0] not in splits]:
        problems.append(_beside_splits(beside, list(splits)))
    inside = [parts for parts in listing.pictures if not splits or parts[0] in splits]
    if outside := _joined(parts for parts in inside if len(parts) <= depth):
        problems.append(
            f"pictures outside of a class folder: {shown(outside)}; move each into the folder of its class"
        )
    if nested := _joined(dict.fromkeys(parts[:-1] for parts in inside if len(parts) > depth + 1)):
        problems.append(
            f"pictures in folders below a class folder: {shown(nested)}; {_unnested(root, listing)}"
        )
    used = {parts[:depth] for parts in inside}
    classes = [
        parts for parts in listing.folders if len(parts) == depth and (depth == 1 or parts[0] in splits)
    ]
    if empty := _joined(parts for parts in classes if parts not in used):
        problems.append(
            f"class folders without a picture: {shown(empty)}; add pictures, or move these folders out"
        )
    return problems


def _beside_splits(beside: list[str], splits: list[str]) -> str:
    """What to do with folders that stand beside those of the splits."""
    names = [repr(name) for name in beside]
    folders = f"the folder {names[0]} stands" if len(names) == 1 else f"the folders {name_some(names)} stand"
    which = f"the split folder{'s' if len(splits) > 1 else ''} {', '.join(map(repr, splits))}"
    them = "it" if len(names) == 1 else "them"
    return (
        f"{folders} beside {which}; move {them} into train/, val/ or test/, or remove the level of the splits"
    )


def _unnested(root: Path, listing: Listing) -> str:
    """What to do with nested folders: take the one folder at the top, or say what the classes are."""
    tops = [parts[0] for parts in listing.folders if len(parts) == 1]
    if len(tops) == 1:
        return f"if the classes are the folders in {tops[0]}, set data.path={root / tops[0]}"
    return (
        f"move the pictures up into the class folder, set data.path to one of these folders, or {IN_A_TABLE}"
    )


def _twins(listing: Listing) -> list[str]:
    """Classes or files whose names are one name on a disk that ignores case or accents' composition."""
    depth = 2 if listing.splits else 1
    problems = []
    if doubles := twins(parts[depth - 1] for parts in listing.folders if len(parts) == depth):
        problems.append(
            f"class folders whose names differ only in case, accents' coding or spaces: {shown(doubles)}; give each "
            "class one name"
        )
    folders: dict[Parts, list[str]] = {}
    for parts in listing.pictures:
        folders.setdefault(parts[:-1], []).append(parts[-1])
    if doubles := ["/".join([*parts, double]) for parts, names in folders.items() for double in twins(names)]:
        problems.append(
            f"two files of one name, but for case, accents' coding or spaces: {shown(doubles)}; rename one of each"
        )
    return problems


def table_of(listing: Listing) -> pd.DataFrame:
    """The sample table of a folder without problems; class names are in the composed form (NFC) on every system."""
    splits = listing.splits
    split_of: Callable[[Parts], str] = lambda parts: splits[parts[0]] if splits else EITHER  # noqa: E731
    rows = pd.DataFrame(
        {
            "path": ["/".join(parts) for parts in listing.pictures],
            "class_name": [unicodedata.normalize("NFC", parts[-2]) for parts in listing.pictures],
            "official": [split_of(parts) for parts in listing.pictures],
        }
    )
    if "test" not in set(rows["official"]):
        rows["official"] = rows["official"].replace("train", EITHER)
    return finish(rows)


def _joined(paths: Iterable[Parts]) -> list[str]:
    return ["/".join(parts) for parts in paths]
