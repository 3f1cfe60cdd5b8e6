"""What a data source has to offer, and what those share that read a folder or table of the user's."""

import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from pipeline.config.data import DataConfig
from pipeline.data.image_store import GOOD_COPIES
from pipeline.data.sources import given_folder

DAMAGE = (  # what readers of other packages, such as torchvision's, raise for damaged files
    OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AssertionError, pickle.UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class Source(ABC):
    """How a data set comes to the disk as pictures, and how it becomes a sample table."""

    config: DataConfig

    verb: ClassVar[str]
    """the name of the stage that fetches it: unpack, say"""

    @property
    @abstractmethod
    def folder_name(self) -> str:
        """The name of its folder below `data.root`, another one for each content that can be configured."""

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, Any] | None:
        """What `fetch` makes its output from, in plain types; None: the user gave a folder and nothing is fetched."""

    @property
    @abstractmethod
    def expected(self) -> tuple[int, int, int]:
        """The numbers of classes, official training images and official test images, before any is there."""

    def bytes_to_fetch(self) -> int:
        """About how much `fetch` still writes to the disk."""
        return 0

    @abstractmethod
    def fetch(self, output: Path) -> None:
        """Draw, unpack or write the data set into `output`, which is empty.

        Raises:
            DataError: it cannot be downloaded, read or written.
        """

    @abstractmethod
    def find_root(self, raw: Path) -> Path:
        """The folder with the data set's tables and its pictures, see `images`.

        Args:
            raw: the output of `fetch`.

        Raises:
            DataError: there is no such folder.
        """

    @abstractmethod
    def images(self, root: Path) -> Path:
        """The folder that the paths of the sample table are relative to."""

    def originals(self, root: Path) -> Mapping[str, str]:  # noqa: ARG002  # most sources make no copies
        """What the user knows pictures as, by the paths of the sample table, where `images` holds copies of theirs."""
        return {}

    def how_to_correct(self, root: Path) -> str:  # noqa: ARG002  # most sources make no copies
        """What to do about pictures that do not decode."""
        return GOOD_COPIES

    def remarks(self, root: Path) -> list[str]:  # noqa: ARG002  # some sources have none
        """What the user should know of the files, a sentence each: what is left out, say."""
        return []

    @abstractmethod
    def read(self, root: Path) -> pd.DataFrame:
        """The sample table, checked: one row an image, columns `sample_table.SOURCE_COLUMNS`.

        Raises:
            DataError: the tables are damaged, or list other images than they should.
        """

    def taxonomy(self, root: Path) -> pd.DataFrame | None:  # noqa: ARG002  # some sources have none
        """The data set's hierarchy: texts, class and a column for each rank, fine to coarse; None: it has none.

        It has a row for each class of `read`, see `data.taxonomy.of_table`.

        Raises:
            DataError: its file is damaged.
        """
        return None

    @abstractmethod
    def digest(self, root: Path) -> str:
        """A digest of the files that `read` reads, and of what the user gave for `fetch` to take the pictures from."""

    def remember(self, prepared: Path, state: str) -> None:  # noqa: B027  # of some sources nothing is given
        """Record in the folder of the prepared data which folder the user gave, if any; see `given_folder`.

        Args:
            state: a digest of what they were prepared from, see `stages.Stamp.source`.
        """


class GivenFolder(Source):
    """A data set of pictures that lie in a folder of the user's, which is only read; see `given_folder`."""

    verb = "list"
    prefix: ClassVar[str]
    """the beginning of the name of its folder below `data.root`"""

    @property
    @abstractmethod
    def given(self) -> Path:
        """The folder or the table that the user named."""

    @property
    def folder_name(self) -> str:
        """The prefix, and a digest of the path; see `given_folder`."""
        name = given_folder.find(self.config.root, self.prefix, self.given, self._content)
        return name or given_folder.first_name(self.config.root, self.prefix, self.given)

    @property
    def inputs(self) -> Mapping[str, Any] | None:
        """None: nothing is fetched."""
        return None

    def fetch(self, output: Path) -> None:  # noqa: ARG002  # the pictures are there
        """Never called: the pictures are there."""
        raise AssertionError("there is nothing to fetch")

    def images(self, root: Path) -> Path:
        """The folder itself."""
        return root

    def remember(self, prepared: Path, state: str) -> None:
        """Record the given folder or table, as long as it is there."""
        if self.given.exists():
            given_folder.remember(prepared, self.given, state, self._content)

    def _content(self) -> str:
        root = self.find_root(self.given)
        return given_folder.digest_of_content(self.read(root), self.images(root))
