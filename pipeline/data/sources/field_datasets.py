"""Data sets of the field, as torchvision downloads and reads them: aircraft, pets, flowers, food.

FGVC-Aircraft (Maji et al. 2013), Oxford-IIIT Pet (Parkhi et al. 2012), Flowers-102 (Nilsback and Zisserman 2008) and
Food-101 (Bossard et al. 2014). The official test is the test; all other images are for training, as most papers have
it, and validation is drawn of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.data.sources import given_folder
from pipeline.data.sources.array_datasets import DAMAGE
from pipeline.data.sources.own_pictures import finish

UNPACKED = 2.0  # bytes of an archive with what is unpacked of it, over those of the archive: JPEGs are as large again


@dataclass(frozen=True)
class FieldDataset:
    """One of these data sets: downloaded, or in torchvision's folder that the user gives."""

    config: DataConfig
    kind: str
    """torchvision's class"""
    folder: str
    """what it makes in its root"""
    official: Mapping[str, str]
    """torchvision's splits: train or test"""
    expected: tuple[int, int, int]
    """classes, official training and test images"""
    archive_gb: float

    verb = "download"

    @property
    def folder_name(self) -> str:
        """The data set's name; with a digest where a folder is given, see `given_folder`."""
        if self.config.archive is None:
            return self.config.source
        name = given_folder.find(self.config.root, self.config.source, self.config.archive, self._content)
        return name or given_folder.first_name(self.config.root, self.config.source, self.config.archive)

    @property
    def inputs(self) -> Mapping[str, Any] | None:
        """The name alone; None: the user gave torchvision's folder."""
        return {"source": self.config.source} if self.config.archive is None else None

    def bytes_to_fetch(self) -> int:
        """The archive and the unpacked pictures."""
        return 0 if self.config.archive else round(UNPACKED * self.archive_gb * 1e9)

    def fetch(self, output: Path) -> None:
        """Download and unpack."""
        self._parts(output, download=True)

    def find_root(self, raw: Path) -> Path:
        """torchvision's root: the given folder, or `raw`."""
        root = self.config.archive or raw
        if not (root / self.folder).is_dir():
            raise DataError(
                f"{root}: no folder {self.folder} in it; set data.archive to the folder that holds it, or leave "
                "data.archive out where there is a network, and it is downloaded"
            )
        return root

    def images(self, root: Path) -> Path:
        """The root itself."""
        return root

    def remarks(self, root: Path) -> list[str]:  # noqa: ARG002  # the protocol's
        """None."""
        return []

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table, by torchvision's lists."""
        rows = []
        for split, part in self._parts(root, download=False).items():
            names = list(part.classes)
            paths = (
                getattr(part, "_image_files", None) or part._images
            )  # torchvision has no public name for them
            if bad := [label for label in part._labels if not 0 <= label < len(names)]:
                raise self._damaged(root, f"label {bad[0]}, and there are {len(names)} classes")
            rows += [
                (Path(path).relative_to(root).as_posix(), names[label], self.official[split])
                for path, label in zip(paths, part._labels, strict=True)
            ]
        table = pd.DataFrame(rows, columns=["path", "class_name", "official"])
        if doubled := table.loc[table["path"].duplicated(), "path"].tolist():
            raise self._damaged(root, f"{doubled[0]} is listed twice")
        return finish(table)

    def taxonomy(self, root: Path) -> pd.DataFrame | None:  # noqa: ARG002  # the protocol's
        """None."""
        return None

    def digest(self, root: Path) -> str:
        """The SHA-256 of the table."""
        return files.digest_of(self.read(root).to_csv(index=False))

    def remember(self, prepared: Path) -> None:
        """Record the given folder, as long as it is there."""
        if self.config.archive is not None and self.config.archive.is_dir():
            given_folder.remember(prepared, self.config.archive, self._content())

    def _content(self) -> str:
        assert self.config.archive is not None
        return self.digest(self.find_root(self.config.archive))

    def _parts(self, root: Path, download: bool) -> dict[str, Any]:
        """The splits, as torchvision has them."""
        import torchvision.datasets  # imports torch: three seconds that other sources do not need
        from scipy.io.matlab import MatReadError

        kind = getattr(torchvision.datasets, self.kind)
        try:
            return {split: kind(root, split=split, download=download) for split in self.official}
        except (*DAMAGE, MatReadError) as error:
            raise self._damaged(root, " ".join(str(error).split()) or type(error).__name__) from error

    def _damaged(self, root: Path, reason: str) -> DataError:
        return DataError(
            f"{root}: no whole {self.config.source} in torchvision's layout ({reason}); bring the folder {self.folder} "
            "and give the one above it as data.archive=FOLDER, or run again where there is a network"
        )


def _source(
    kind: str, folder: str, train: tuple[str, ...], expected: tuple[int, int, int], archive_gb: float
) -> Callable[[DataConfig], FieldDataset]:
    official = {**dict.fromkeys(train, "train"), "test": "test"}
    return partial(
        FieldDataset, kind=kind, folder=folder, official=official, expected=expected, archive_gb=archive_gb
    )


SOURCES = {
    "fgvc_aircraft": _source("FGVCAircraft", "fgvc-aircraft-2013b", ("trainval",), (100, 6_667, 3_333), 2.8),
    "oxford_pets": _source("OxfordIIITPet", "oxford-iiit-pet", ("trainval",), (37, 3_680, 3_669), 0.8),
    "flowers102": _source("Flowers102", "flowers-102", ("train", "val"), (102, 2_040, 6_149), 0.35),
    "food101": _source("Food101", "food-101", ("train",), (101, 75_750, 25_250), 5.0),
}
