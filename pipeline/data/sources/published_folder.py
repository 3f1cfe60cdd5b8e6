"""What the data sets of the field share that are only taken from a folder: their download is gone, or needs a form."""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.data.sources.base import DAMAGE, GivenFolder
from pipeline.data.sources.own_pictures import finish, refuse, shown


class PublishedFolder(GivenFolder):
    """A data set of the field in the folder `data.archive` where the user has unpacked it."""

    @property
    def given(self) -> Path:
        """The folder that the user named."""
        assert self.config.archive is not None, "the configuration asks for data.archive"
        return self.config.archive

    def digest(self, root: Path) -> str:
        """The SHA-256 of the table."""
        return files.digest_of(self.read(root).to_csv(index=False))


def first_with(folder: Path, places: Iterable[str | Path], name: str, what_next: str) -> Path:
    """The first of the places in a folder that holds a file or folder of this name.

    Raises:
        DataError: none does; the sentence ends with `what_next`.
    """
    for place in places:
        if (folder / place / name).exists():
            return folder / place / name
    what = f"no {name} in it" if folder.is_dir() else "no such folder"
    raise DataError(f"{folder}: {what}; {what_next}")


def read_mat(path: Path, names: Sequence[str]) -> list[Any]:
    """Variables of a MATLAB file, by scipy, dimensions of size 1 squeezed.

    Raises:
        DataError: the file is damaged, or lacks one.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(path, squeeze_me=True)
        return [found[name] for name in names]
    except (*DAMAGE, MatReadError, ArithmeticError, AttributeError, MemoryError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path}: no MATLAB file with {', '.join(names)} ({reason}); put a good copy in its place"
        ) from error


def sample_table_of(rows: pd.DataFrame, where: Path) -> pd.DataFrame:
    """The sample table of what a data set's files list.

    Args:
        rows: path (with /, relative to the folder of images), class_name, official; perhaps boxes.
        where: the folder, for messages.

    Raises:
        DataError: a path is listed twice, or leads out of the folder.
    """
    pure = rows["path"].map(PurePosixPath)
    outside = rows.loc[[path.is_absolute() or ".." in path.parts for path in pure], "path"].tolist()
    doubled = rows.loc[rows["path"].duplicated(), "path"].unique().tolist()
    kinds = {"paths that lead out of the folder": outside, "pictures that are listed twice": doubled}
    copy = "put good copies of the lists in their place"
    refuse(where, [f"{kind}: {shown(paths)}; {copy}" for kind, paths in kinds.items() if paths])
    return finish(rows)
