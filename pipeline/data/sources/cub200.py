"""CUB-200-2011: the published archive, another one of its layout, or a folder; see `cub_layout` for its files.

`cub_taxonomy.csv` has genus, family and order of its classes as Barz and Denzler looked them up in Wikispecies
(WACV 2020, arXiv:1901.09054). Frigatebird, Nighthawk, Sayornis and Geococcyx are genera; Tree Sparrow mixes
two species, and stands where more of its images belong.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common.errors import DataError, name_some
from pipeline.config.data import DataConfig
from pipeline.data.sources import download, extract, given_folder
from pipeline.data.sources.cub_layout import AGAIN, CubLayout, find_root, read
from pipeline.data.sources.download import Remote

ARCHIVE = Remote(
    urls=("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
    size_bytes=1_150_585_339,
    md5="97eceeb196236b17998738112f37df78",
    sha256="0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
)
CLASSES = 200
IMAGES = {"train": 5_994, "test": 5_794}
IMAGES_A_CLASS = {"train": (29, 30), "test": (11, 30)}  # fewest and most
TAXONOMY = Path(__file__).with_name("cub_taxonomy.csv")
UNPACKED = 1.05  # bytes of the unpacked JPEGs over those of their archive


class Cub200(CubLayout):
    """The published archive, another one of the same layout, or a folder where one was unpacked."""

    verb = "unpack"
    expected = CLASSES, IMAGES["train"], IMAGES["test"]

    @property
    def folder_name(self) -> str:
        """`cub200`, with a digest where it is not the published archive; of a folder, see `given_folder`."""
        if self._unpacked is not None:
            return self._prepared or given_folder.first_name(self.config.root, "cub200", self._unpacked)
        return "cub200" if is_official(self.config) else f"cub200-{_md5(self.config)[:8]}"

    @property
    def inputs(self) -> Mapping[str, Any] | None:
        """The archive's digest; None: the archive is already unpacked."""
        return {"md5": _md5(self.config)} if self._unpacked is None else None

    def fetch(self, output: Path) -> None:
        """Unpack the archive, after downloading it where none is given.

        Raises:
            DataError: the archive is not as its digests say, or there is a digest of one that cannot be downloaded.
        """
        archive = self.config.archive
        if archive is None and not is_official(self.config):
            raise DataError(
                f"data.archive_md5={self.config.archive_md5}: of another archive than the published one, which alone is "
                "downloaded; set data.archive to that archive, or leave data.archive_md5 out"
            )
        if archive is None:
            archive = self.config.root / "downloads" / "CUB_200_2011.tgz"
            download.fetch(ARCHIVE, archive)
        else:
            size_bytes = ARCHIVE.size_bytes if is_official(self.config) else None
            download.verify_archive(archive, _md5(self.config), size_bytes)
        extract.unpack(archive, output)

    def find_root(self, raw: Path) -> Path:
        """The folder with images.txt, in the given folder or in `raw`."""
        return find_root(self._unpacked or raw)

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table; of the published archive, with the published numbers of images."""
        table = read(root)
        if is_official(self.config):
            check_official(table, root)
        return table

    def taxonomy(self, root: Path) -> pd.DataFrame | None:
        """Genus, family and order of each class; None where a class is none of CUB's 200."""
        table = pd.read_csv(TAXONOMY)
        classes = read(root)["class_name"].unique()
        rows = table[table["class"].isin(classes)]
        return rows if len(rows) == len(classes) else None

    def bytes_to_fetch(self) -> int:
        """The archive, as far as it is not downloaded, and the unpacked pictures."""
        archive = self.config.archive
        if archive is not None:
            return round(UNPACKED * archive.stat().st_size) if archive.is_file() else 0
        downloads = (self.config.root / "downloads").glob("CUB_200_2011.tgz*")
        downloaded = sum(path.stat().st_size for path in downloads)
        return round((1 + UNPACKED) * ARCHIVE.size_bytes) - min(downloaded, ARCHIVE.size_bytes)

    def remember(self, prepared: Path, state: str) -> None:
        """Record the given folder."""
        if self._unpacked is not None:
            given_folder.remember(prepared, self._unpacked, state, self._content)

    @property
    def _unpacked(self) -> Path | None:
        """The folder that `data.archive` names, or named when data were prepared from it."""
        archive = self.config.archive
        if archive is None or archive.is_file():
            return None
        return archive if archive.is_dir() or self._prepared is not None else None

    @property
    def _prepared(self) -> str | None:
        """The name of the data that were prepared from the given folder."""
        archive = self.config.archive
        assert archive is not None
        return given_folder.find(self.config.root, "cub200", archive, self._content)

    def _content(self) -> str:
        assert self.config.archive is not None
        root = find_root(self.config.archive)
        return given_folder.digest_of_content(read(root), self.images(root))


def is_official(config: DataConfig) -> bool:
    """Whether the data are the published archive of CUB-200-2011, by its digest.

    A folder has none, and neither has one that data were prepared from and that is not there now.
    """
    return config.source == "cub200" and Cub200(config).inputs == {"md5": ARCHIVE.md5}


def _md5(config: DataConfig) -> str:
    return config.archive_md5 or ARCHIVE.md5


def check_official(table: pd.DataFrame, where: Path) -> None:
    """Raise a `DataError` unless the numbers of classes and images are those of the official data set."""
    problems = []
    if (classes := table["label"].nunique()) != CLASSES:
        problems.append(f"{classes} classes where {CLASSES} are expected")
    for split, expected in IMAGES.items():
        rows = table[table["official"] == split]
        if len(rows) != expected:
            problems.append(f"{len(rows):,} {split} images where {expected:,} are expected")
        fewest, most = IMAGES_A_CLASS[split]
        counts = rows["class_name"].value_counts()
        counts = counts.reindex(table["class_name"].unique(), fill_value=0)
        odd = sorted(counts.index[~counts.between(fewest, most)])
        if odd:
            problems.append(f"{name_some(odd)} without {fewest} to {most} {split} images")
    if boxless := table.loc[table["box_x"].isna(), "id"].tolist():
        problems.append(f"no box for image ids {name_some(boxless)}")
    if problems:
        raise DataError(
            f"{where}: not as it was unpacked from the official CUB-200-2011: {'; '.join(problems)}; {AGAIN}"
        )
