"""Arrays on the disk: npz archives, complete or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common import files


def write_npz(path: Path, arrays: Mapping[str, Any], *, compress: bool = False) -> None:
    """Write arrays by their names as one npz archive, complete or not at all."""
    save = np.savez_compressed if compress else np.savez
    with files.replacing(path) as part, part.open("wb") as stream:
        save(stream, **arrays)
