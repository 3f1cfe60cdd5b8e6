"""Arrays on the disk: npz archives, complete or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.common import files
from pipeline.common.errors import DataError


def write_npz(path: Path, arrays: Mapping[str, Any], *, compress: bool = False) -> None:
    """Write arrays by their names as one npz archive, complete or not at all."""
    save = np.savez_compressed if compress else np.savez
    with files.replacing(path) as part, part.open("wb") as stream:
        save(stream, **arrays)


def read_npz(path: Path, names: Sequence[str], advice: str = files.RESTORE) -> list[npt.NDArray[Any]]:
    """The arrays of these names in an npz archive.

    Args:
        advice: what to do when the file is damaged.

    Raises:
        DataError: the file is damaged, or lacks one of them.
    """
    with path.open("rb") as stream:  # a file that may not be read is no damaged one
        try:
            with np.load(stream, allow_pickle=False) as stored:
                return [np.asarray(stored[name]) for name in names]
        except Exception as error:  # numpy, zipfile and zlib raise some ten kinds for damaged bytes
            said = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path}: damaged, or without one of {list(names)} ({said}); {advice}") from error
