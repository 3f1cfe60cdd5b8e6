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
from pipeline.data.sources import download, given_folder
from pipeline.data.sources.base import DAMAGE, Source
from pipeline.data.sources.own_pictures import finish

UNPACKED = 2.0  # bytes of an archive with what is unpacked of it, over those of the archive: JPEGs are as large again
AIRCRAFT_RANKS = {"family": "families.txt", "manufacturer": "manufacturers.txt"}
"""of FGVC-Aircraft, fine to coarse, with the list of their names"""


@dataclass(frozen=True)
class FieldDataset(Source):
    """One of these data sets: downloaded, or in torchvision's folder that the user gives."""

    kind: str
    """torchvision's class"""
    folder: str
    """what it makes in its root"""
    official: Mapping[str, str]
    """torchvision's splits: train or test"""
    published: tuple[int, int, int]
    """classes, official training and test images"""
    archive_gb: float
    hierarchy: "Callable[[FieldDataset, Path], pd.DataFrame | None] | None" = None
    """reads the ranks above the classes from the root"""

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

    @property
    def expected(self) -> tuple[int, int, int]:
        """As published."""
        return self.published

    def bytes_to_fetch(self) -> int:
        """The archive and the unpacked pictures."""
        return 0 if self.config.archive else round(UNPACKED * self.archive_gb * 1e9)

    def fetch(self, output: Path) -> None:
        """Download and unpack."""
        with download.limited_silence():
            self.parts(output, download=True)

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

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table, by torchvision's lists."""
        return finish(self.listed(root))

    def listed(self, root: Path, **options: str) -> pd.DataFrame:
        """The images of torchvision's lists: path, class_name, official.

        Args:
            options: of torchvision's class.
        """
        rows = []
        for split, part in self.parts(root, download=False, **options).items():
            names = list(part.classes)
            paths = (
                getattr(part, "_image_files", None) or part._images
            )  # torchvision has no public name for them
            if bad := [label for label in part._labels if not 0 <= label < len(names)]:
                raise self.damaged(root, f"label {bad[0]}, and there are {len(names)} classes")
            rows += [
                (Path(path).relative_to(root).as_posix(), names[label], self.official[split])
                for path, label in zip(paths, part._labels, strict=True)
            ]
        table = pd.DataFrame(rows, columns=["path", "class_name", "official"])
        if doubled := table.loc[table["path"].duplicated(), "path"].tolist():
            raise self.damaged(root, f"{doubled[0]} is listed twice")
        return table

    def taxonomy(self, root: Path) -> pd.DataFrame | None:
        """The families and manufacturers of aircraft, the species of pets; None of others."""
        return None if self.hierarchy is None else self.hierarchy(self, root)

    def digest(self, root: Path) -> str:
        """The SHA-256 of the table."""
        return files.digest_of(self.read(root).to_csv(index=False))

    def remember(self, prepared: Path, state: str) -> None:
        """Record the given folder, as long as it is there."""
        if self.config.archive is not None and self.config.archive.is_dir():
            given_folder.remember(prepared, self.config.archive, state, self._content)

    def _content(self) -> str:
        assert self.config.archive is not None
        root = self.find_root(self.config.archive)
        return given_folder.digest_of_content(self.read(root), self.images(root))

    def parts(self, root: Path, download: bool, **options: str) -> dict[str, Any]:
        """The splits, as torchvision's class has them with these options."""
        import torchvision.datasets  # imports torch: three seconds that other sources do not need
        from scipy.io.matlab import MatReadError

        kind = getattr(torchvision.datasets, self.kind)
        try:
            return {split: kind(root, split=split, download=download, **options) for split in self.official}
        except (*DAMAGE, MatReadError) as error:
            raise self.damaged(root, " ".join(str(error).split()) or type(error).__name__) from error

    def damaged(self, root: Path, reason: str) -> DataError:
        """The sentence for files that are not as torchvision needs them."""
        return DataError(
            f"{root}: no whole {self.config.source} in torchvision's layout ({reason}); bring the folder {self.folder} "
            "and give the one above it as data.archive=FOLDER, or run again where there is a network"
        )


def _aircraft(source: FieldDataset, root: Path) -> pd.DataFrame | None:
    """The family and the manufacturer of each variant; None where their lists were left out."""
    lists = [f"images_{rank}_{split}.txt" for rank in AIRCRAFT_RANKS for split in source.official]
    files_ = [*lists, *AIRCRAFT_RANKS.values()]
    if not all((root / source.folder / "data" / name).is_file() for name in files_):
        return None
    ranks = {rank: source.listed(root, annotation_level=rank) for rank in AIRCRAFT_RANKS}
    columns = {"class": source.listed(root), **ranks}
    by_path = {name: listed.set_index("path")["class_name"] for name, listed in columns.items()}
    return pd.DataFrame(by_path).fillna("").drop_duplicates()


def _pets(source: FieldDataset, root: Path) -> pd.DataFrame:
    """The species of each breed: Cat or Dog."""
    rows = []
    for part in source.parts(root, download=False).values():
        names = dict(enumerate(part.bin_classes))
        for label, species in zip(part._labels, part._bin_labels, strict=True):  # without a public name
            if species not in names:
                raise source.damaged(root, f"species {species + 1} of {part.classes[label]}, and there are 2")
            rows.append((part.classes[label], names[species]))
    return pd.DataFrame(rows, columns=["class", "species"]).drop_duplicates()


def _source(
    kind: str,
    folder: str,
    train: tuple[str, ...],
    published: tuple[int, int, int],
    archive_gb: float,
    hierarchy: Callable[[FieldDataset, Path], pd.DataFrame | None] | None = None,
) -> Callable[[DataConfig], FieldDataset]:
    official = {**dict.fromkeys(train, "train"), "test": "test"}
    return partial(
        FieldDataset,
        kind=kind,
        folder=folder,
        official=official,
        published=published,
        archive_gb=archive_gb,
        hierarchy=hierarchy,
    )


SOURCES = {
    "fgvc_aircraft": _source(
        "FGVCAircraft", "fgvc-aircraft-2013b", ("trainval",), (100, 6_667, 3_333), 2.8, _aircraft
    ),
    "oxford_pets": _source("OxfordIIITPet", "oxford-iiit-pet", ("trainval",), (37, 3_680, 3_669), 0.8, _pets),
    "flowers102": _source("Flowers102", "flowers-102", ("train", "val"), (102, 2_040, 6_149), 0.35),
    "food101": _source("Food101", "food-101", ("train",), (101, 75_750, 25_250), 5.0),
}
