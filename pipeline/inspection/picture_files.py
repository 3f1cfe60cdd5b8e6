"""What only the files of the pictures tell: format, mode, orientation flag, and the digest of equal sizes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from PIL import ExifTags, Image

from pipeline.common import console, files, hardware
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.image_store import map_in_order
from pipeline.data.pictures import DAMAGE, FORMATS, TURNS
from pipeline.data.sources.source import source_of

AHEAD = 4  # files a thread that wait to be taken: so few that an interrupt is soon over
UNREADABLE = "cannot be read now"
UPRIGHT = 1  # EXIF's orientation of a picture that is shown as it lies


def describe(samples: pd.DataFrame, config: Config) -> pd.DataFrame | None:
    """The facts of each file, in the table's order; None: the folder of the pictures is not there now.

    Returns:
        format and mode (Pillow's names; `UNREADABLE` for a file that is gone or damaged since `data` read it),
        orientation (EXIF's, 1..8), digest (SHA-256 where another file has as many bytes, else "").
    """
    root = prepare.find_root(config.data)
    if root is None:
        return None
    folder = source_of(config.data).images(root)
    paths = [folder / path for path in samples["path"]]
    workers = hardware.cores() + 1
    with console.bar("files", len(paths)) as bar, ThreadPoolExecutor(workers) as pool:
        rows = []
        for row in map_in_order(pool, _header, paths, AHEAD * workers):
            rows.append(row)
            bar.advance()
        facts = pd.DataFrame(rows, columns=["format", "mode", "orientation", "bytes"])
        return facts.assign(digest=_digests(paths, facts, pool, AHEAD * workers))


def _header(path: Path) -> tuple[str, str, int, int]:
    """Format, mode, orientation and bytes of a file; -1 bytes: it cannot be read."""
    try:
        with path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
            orientation = _orientation(image)
            return image.format or UNREADABLE, image.mode, orientation, path.stat().st_size
    except DAMAGE:
        return UNREADABLE, UNREADABLE, UPRIGHT, -1


def _orientation(image: Image.Image) -> int:
    try:
        flag = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except DAMAGE:  # of metadata alone: such a picture is shown as it lies
        return UPRIGHT
    return int(flag) if flag in TURNS else UPRIGHT


def _digests(paths: Sequence[Path], facts: pd.DataFrame, pool: ThreadPoolExecutor, ahead: int) -> list[str]:
    """Files of different sizes differ: only those that share their size are read."""
    shared = facts["bytes"].duplicated(keep=False) & (facts["bytes"] >= 0)
    digests = [""] * len(paths)
    rows = [int(row) for row in shared.to_numpy().nonzero()[0]]
    found = map_in_order(pool, lambda row: files.digest_of_file(paths[row]), rows, ahead)
    for row, digest in zip(rows, found, strict=True):
        digests[row] = digest
    return digests
