"""What a data source has to offer, and the list of all sources.

A new source is one file beside this one and one entry in `SOURCES`; its name is allowed by the list of
`data.source` in `config/data.py`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from pipeline.common.errors import DataError
from pipeline.config.data import OWN, DataConfig
from pipeline.data.sources import array_datasets, field_datasets
from pipeline.data.sources.class_folders import ClassFolders
from pipeline.data.sources.cub200 import Cub200
from pipeline.data.sources.drawn_birds.dataset import DrawnBirds
from pipeline.data.sources.hugging_face import HuggingFace
from pipeline.data.sources.nabirds import NABirds
from pipeline.data.sources.picture_list import PictureList
from pipeline.data.sources.stanford_cars import StanfordCars
from pipeline.data.sources.stanford_dogs import StanfordDogs


class Source(Protocol):
    """How a data set comes to the disk as pictures, and how it becomes a sample table."""

    @property
    def verb(self) -> str:
        """The name of the stage that fetches it, such as "unpack"."""

    @property
    def folder_name(self) -> str:
        """The name of its folder below `data.root`, another one for each content that can be configured."""

    @property
    def inputs(self) -> Mapping[str, Any] | None:
        """What `fetch` makes its output from, in plain types; None: the user gave a folder and nothing is fetched."""

    @property
    def expected(self) -> tuple[int, int, int]:
        """The numbers of classes, official training images and official test images, before any is there."""

    def bytes_to_fetch(self) -> int:
        """About how much `fetch` still writes to the disk."""

    def fetch(self, output: Path) -> None:
        """Draw, unpack or write the data set into `output`, which is empty.

        Raises:
            DataError: it cannot be downloaded, read or written.
        """

    def find_root(self, raw: Path) -> Path:
        """The folder with the data set's tables and its pictures, see `images`.

        Args:
            raw: the output of `fetch`.

        Raises:
            DataError: there is no such folder.
        """

    def images(self, root: Path) -> Path:
        """The folder that the paths of the sample table are relative to."""

    def remarks(self, root: Path) -> list[str]:
        """What the user should know of the files, a sentence each: what is left out, say."""

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table, checked: one row an image, columns `sample_table.SOURCE_COLUMNS`.

        Raises:
            DataError: the tables are damaged, or list other images than they should.
        """

    def taxonomy(self, root: Path) -> pd.DataFrame | None:
        """The data set's hierarchy: texts, class and a column for each rank, fine to coarse; None: it has none.

        It has a row for each class of `read`, see `data.taxonomy.of_table`.

        Raises:
            DataError: its file is damaged.
        """

    def digest(self, root: Path) -> str:
        """A digest of the files that `read` reads, and of what the user gave for `fetch` to take the pictures from."""

    def remember(self, prepared: Path) -> None:
        """Record in the folder of the prepared data which folder the user gave, if any; see `given_folder`."""


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "cub200": Cub200,
    "folder": ClassFolders,
    "csv": PictureList,
    "hugging_face": HuggingFace,
    "synthetic": DrawnBirds,
    **array_datasets.SOURCES,
    **field_datasets.SOURCES,
    "nabirds": NABirds,
    "stanford_dogs": StanfordDogs,
    "stanford_cars": StanfordCars,
}

WITHOUT_ARCHIVE = (*OWN, "synthetic", "digits")
"""sources that read nothing from data.archive"""


def source_of(config: DataConfig) -> Source:
    """The source that `data.source` names."""
    return SOURCES[config.source](config)


def check_archive(config: DataConfig) -> None:
    """Raise a `DataError` where an archive is given to a source that takes none."""
    if config.archive is not None and config.source in WITHOUT_ARCHIVE:
        raise DataError(
            f"data.archive={config.archive}: source {config.source} reads {config.path or 'no file'}, and no archive; "
            "leave data.archive out, or set data.source to the published set that it holds"
        )
