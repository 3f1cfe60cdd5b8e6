"""Source `hugging_face`: a map-style data set of Hugging Face's library `datasets`, an optional package.

`data.path` names a folder that `save_to_disk` wrote, a folder that `load_dataset` reads (folders of pictures, Parquet
with pictures in it), or a data set of the hub (owner/name). Its pictures become files, byte for byte, and a table of
them, below `data.root`; splits and classes are then those of a table of one's own, see `picture_list`.
"""

import importlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common import console, errors, files, tables
from pipeline.common.errors import RUN_DATA, DataError
from pipeline.data.pictures import WHAT_TO_GIVE
from pipeline.data.sources import given_folder, picture_list
from pipeline.data.sources.base import DAMAGE
from pipeline.data.sources.class_folders import SUFFIXES
from pipeline.data.sources.own_pictures import SPLIT_NAMES, OwnPictures, check_classes, quoted, refuse, shown

LIST = "pictures.csv"
ORIGINAL = "original"
"""a column of the list: the row of the data set and, if it has one, the name of its file"""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SAVED = ("dataset_dict.json", "state.json")
"""what `save_to_disk` writes into its folder: one of these"""
INSTALL = "install it from Plumage's folder: .venv/bin/pip install --editable '.[hub]'"


class HuggingFace(OwnPictures):
    """A data set that the library `datasets` reads."""

    prefix = "hugging_face"
    verb = "export"

    @property
    def folder_name(self) -> str:
        """The prefix, and a digest of the hub's name or of the path; see `given_folder`."""
        if self._is_of_hub:
            return f"{self.prefix}-{files.digest_of(str(self.given))[:8]}"
        return super().folder_name

    @property
    def inputs(self) -> Mapping[str, Any] | None:
        """The hub's name, or the sizes and times of the files, also when they are gone; None: there is nothing."""
        if self._is_of_hub:
            return {"hub": str(self.given)}
        if self.given.exists():
            return {"content": self._content()}
        content = given_folder.fetched(self.config.root / self.folder_name)
        return None if content is None else {"content": content}

    def fetch(self, output: Path) -> None:
        """Write the pictures and the table of them.

        Raises:
            DataError: the package is missing, or the data set has no column of pictures, or of classes, or other
                splits than train, val and test.
        """
        try:
            datasets = importlib.import_module("datasets")
        except ImportError as error:
            raise DataError(f"data.source=hugging_face needs the package datasets; {INSTALL}") from error
        if not self._is_of_hub:
            self.check_root_is_outside()
        cache = output / "cache"
        with _as_data_errors(self.given):
            splits = _splits(datasets, self.given, None if self._is_of_hub else cache)
            _check_splits(self.given, splits)
            columns = {split: _columns(datasets, part, self.given) for split, part in splits.items()}
            labels = {split: _labels(datasets, part, columns[split][1]) for split, part in splits.items()}
        refuse(self.given, _unlabelled(labels))
        rows: list[tuple[str, str, str, str]] = []
        with console.bar("export", sum(map(len, labels.values()))) as bar:
            for split, part in splits.items():
                name = columns[split][0]
                undecoded = part.select_columns([name]).cast_column(name, datasets.Image(decode=False))
                (output / "images" / (split or "all")).mkdir(parents=True)
                for number, label in enumerate(labels[split]):
                    with _as_data_errors(self.given):
                        picture = undecoded[number][name]
                        suffix, content = _file(picture, number)
                    path = f"images/{split or 'all'}/{number:07}{suffix}"
                    (output / path).write_bytes(content)
                    rows.append((path, label, split, self._original(split, number, picture["path"])))
                    bar.advance()
        shutil.rmtree(cache, ignore_errors=True)
        tables.write_csv(pd.DataFrame(rows, columns=["path", "label", "split", ORIGINAL]), output / LIST)

    def find_root(self, raw: Path) -> Path:
        """`raw`, with the table in it."""
        if self.inputs is None:
            raise DataError(
                f"{self.given}: no such folder, and no name of a data set of the hub (owner/name); check data.path"
            )
        if not (raw / LIST).is_file():
            raise DataError(f"{raw / LIST}: missing; {RUN_DATA}")
        return raw

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table; one `DataError` lists every problem of the classes."""
        rows = picture_list.read_texts(root / LIST)
        refuse(self.given, picture_list.problems_of(rows, root))
        table = picture_list.table_of(rows)
        check_classes(table, self.given, self.config.test_fraction)
        return table

    def originals(self, root: Path) -> dict[str, str]:
        """The row of each picture and, if it has one, the name of its file; earlier lists lack them."""
        rows = picture_list.read_texts(root / LIST)
        return dict(zip(rows["path"], rows[ORIGINAL], strict=True)) if ORIGINAL in rows else {}

    def how_to_correct(self, root: Path) -> str:
        """Another content of a given folder is seen; a name of the hub says nothing of its content."""
        aside = f", rename {root}" if self._is_of_hub else ""
        return f"correct {self.given} ({WHAT_TO_GIVE}){aside}, then {RUN_DATA}"

    def _original(self, split: str, number: int, path: str | None) -> str:
        row = f"{split} row {number}".strip()
        if not path:
            return row
        file = Path(path)
        given = self.given.resolve()
        name = file.relative_to(given).as_posix() if file.is_relative_to(given) else file.name
        return f"{row}, {quoted(name)}"

    def digest(self, root: Path) -> str:
        """The SHA-256 of the table; of a given folder with its content, for other pictures may have the same table."""
        listed = files.digest_of_file(root / LIST)
        return listed if self._is_of_hub else files.digest_of([listed, self.inputs])

    def bytes_to_fetch(self) -> int:
        """The size of the given files; of the hub's none is known."""
        return sum(path.stat().st_size for path in _files(self.given))

    def remember(self, prepared: Path, state: str) -> None:
        """Record the given folder, as long as it is there; a name of the hub needs no record."""
        if not self._is_of_hub:
            super().remember(prepared, state)

    @property
    def _is_of_hub(self) -> bool:
        """Whether the path is no folder, and none that was here before, and can be a name of the hub."""
        if self.given.exists() or not HUB_NAME.fullmatch(str(self.given)):
            return False
        return given_folder.find(self.config.root, self.prefix, self.given, self._content) is None

    def _content(self) -> str:
        """A digest of the sizes and times of the given files."""
        states = {path.relative_to(self.given).as_posix(): path.stat() for path in _files(self.given)}
        return files.digest_of({name: [state.st_size, state.st_mtime_ns] for name, state in states.items()})


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def _as_data_errors(given: Path) -> Iterator[None]:
    """Raise a `DataError` for what `datasets` and Arrow raise for data that they cannot read."""
    datasets_errors = importlib.import_module("datasets.exceptions").DatasetsError
    try:
        yield
    except (*DAMAGE, datasets_errors) as error:
        if errors.refused(error) is not None:  # of the disk
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"{given}: no data set that the package datasets reads ({reason}); set data.path to a folder that "
            "save_to_disk wrote or load_dataset reads, or to a data set of the hub (owner/name)"
        ) from error


def _splits(datasets: Any, given: Path, cache: Path | None) -> dict[str, Any]:
    """The parts of a data set by name; "" where it has none.

    Args:
        cache: for what `load_dataset` writes; None: where it keeps what it downloads.
    """
    datasets.disable_progress_bars()
    if any((given / name).is_file() for name in SAVED):
        loaded = datasets.load_from_disk(str(given))
    else:
        loaded = datasets.load_dataset(str(given), cache_dir=cache and str(cache))
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}


def _check_splits(given: Path, splits: Iterable[str]) -> None:
    if unknown := [split for split in splits if split and split.casefold() not in SPLIT_NAMES]:
        raise DataError(
            f"{given}: splits other than train, val and test: {shown(unknown)}; rename them, or leave them out, and "
            "save the data set again (save_to_disk)"
        )


def _columns(datasets: Any, part: Any, given: Path) -> tuple[str, str]:
    """The names of the columns of pictures and of classes, by their types.

    Classes are a column of `ClassLabel`, else one of texts; of several, those named image and label.
    """
    features = part.features
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    named = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    values = {name: kind.dtype for name, kind in features.items() if isinstance(kind, datasets.Value)}
    texts = [name for name, dtype in values.items() if "string" in dtype or name == "label"]
    return _one(pictures, "image", "pictures", given), _one(named or texts, "label", "classes", given)


def _one(found: list[str], usual: str, of_what: str, given: Path) -> str:
    if len(found) == 1 or usual in found:
        return usual if usual in found else found[0]
    several = (
        f"columns {shown(found)}, one of which may be that of {of_what}"
        if found
        else f"no column of {of_what}"
    )
    raise DataError(f"{given}: {several}; name it {usual} and save the data set again (save_to_disk)")


def _labels(datasets: Any, part: Any, column: str) -> list[str]:
    """The class of each row as a text; "" where it has none."""
    kind, values = part.features[column], part[column]
    if isinstance(kind, datasets.ClassLabel):
        return ["" if value is None or value < 0 else kind.int2str(value) for value in values]
    return ["" if value is None else str(value) for value in values]


def _unlabelled(labels: Mapping[str, list[str]]) -> list[str]:
    rows = [
        f"{split} row {number}".strip()
        for split, each in labels.items()
        for number, label in enumerate(each)
        if not label.strip()
    ]
    return rows and [
        f"without a class: {shown(rows)}; save the data set again without these rows (save_to_disk)"
    ]


def _file(picture: Mapping[str, Any] | None, number: int) -> tuple[str, bytes]:
    """The ending of a picture's name, if any, and its bytes."""
    if picture is None:
        raise ValueError(f"row {number} has no picture")
    path = picture["path"] or ""
    content = picture["bytes"] if picture["bytes"] is not None else Path(path).read_bytes()
    suffix = Path(path).suffix.lower()
    return suffix if suffix in SUFFIXES else "", content
