"""Stanford Dogs (Khosla et al. 2011): 120 breeds, from its own files, unpacked or as the archives that it comes in.

Images/n02085620-Chihuahua/n02085620_7.jpg        images.tar
train_list.mat, test_list.mat                     lists.tar
Annotation/n02085620-Chihuahua/n02085620_7        annotation.tar; the boxes, in XML; may be absent
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.data.sources import extract, given_folder
from pipeline.data.sources.own_pictures import BOX, shown
from pipeline.data.sources.published_folder import PublishedFolder, first_with, read_mat, sample_table_of

LISTS = {"train_list.mat": "train", "test_list.mat": "test"}
ARCHIVES = ("images.tar", "lists.tar")
ANNOTATION_ARCHIVE = "annotation.tar"
PATH = re.compile(r"n\d+-(?P<breed>[^/]+)/[^/]+")
WHAT_NEXT = (
    "set data.archive to the folder with Images, Annotation, train_list.mat and test_list.mat, or with images.tar, "
    "annotation.tar and lists.tar"
)
BOX_ENDS = ("xmin", "ymin", "xmax", "ymax")


class StanfordDogs(PublishedFolder):
    """A folder with the pictures and the lists, or with the archives of both, which are unpacked below `data.root`."""

    prefix = "stanford_dogs"
    verb = "unpack"

    @property
    def expected(self) -> tuple[int, int, int]:
        """As published."""
        return 120, 12_000, 8_580

    @property
    def inputs(self) -> Mapping[str, Any] | None:
        """What tells the archives from others, also when they are gone; None: they are unpacked."""
        if self._packed:
            return {"archives": _state(self._archives)}
        if self.given.exists():
            return None
        content = given_folder.fetched(self.config.root / self.folder_name)
        return None if content is None else {"archives": content}

    def bytes_to_fetch(self) -> int:
        """The archives' size: none of them is compressed."""
        return sum(path.stat().st_size for path in self._archives) if self._packed else 0

    def fetch(self, output: Path) -> None:
        """Unpack the archives."""
        for archive in self._archives:
            extract.unpack(archive, output)

    def find_root(self, raw: Path) -> Path:
        """The folder with Images: the given one, or `raw`."""
        return self.images(raw if self.inputs is not None else self.given).parent

    def images(self, root: Path) -> Path:
        """The folder Images."""
        return first_with(root, (".", "images"), "Images", WHAT_NEXT)

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table, by the lists; of several dogs in a picture, the box around all of them."""
        tops = [root, root / "lists", root.parent, root.parent / "lists"]
        lists = {name: first_with(root, tops, name, WHAT_NEXT) for name in LISTS}
        rows = pd.concat([_listed(path, LISTS[name]) for name, path in lists.items()], ignore_index=True)
        breeds = rows.groupby("label")["class_name"].unique()
        if mixed := [f"{label}: {', '.join(names)}" for label, names in breeds.items() if len(names) > 1]:
            raise DataError(f"{root}: one label is given to several breeds: {shown(mixed)}; {WHAT_NEXT}")
        tops = [root, root.parent, root.parent / "annotations"]
        annotations = next((top / "Annotation" for top in tops if (top / "Annotation").is_dir()), None)
        table = sample_table_of(rows, root)
        return table if annotations is None else table.assign(**_boxes(annotations, table["path"]))

    def digest(self, root: Path) -> str:
        """The SHA-256 of the table; of archives with their state, for other pictures may have the same table."""
        listed, archives = super().digest(root), self.inputs
        return listed if archives is None else files.digest_of([listed, archives])

    @property
    def _archives(self) -> list[Path]:
        paths = [self.given / name for name in (*ARCHIVES, ANNOTATION_ARCHIVE)]
        return [path for path in paths if path.is_file()]

    @property
    def _packed(self) -> bool:
        unpacked = any((self.given / place / "Images").is_dir() for place in (".", "images"))
        return not unpacked and {path.name for path in self._archives}.issuperset(ARCHIVES)

    def _content(self) -> str:
        return _state(self._archives) if self._packed else super()._content()


def _state(archives: list[Path]) -> str:
    """A digest of the lists and of the other archives' sizes."""
    return files.digest_of(
        {
            path.name: files.digest_of_file(path) if path.name == "lists.tar" else path.stat().st_size
            for path in archives
        }
    )


def _listed(path: Path, official: str) -> pd.DataFrame:
    """The rows of a list: path, class_name, label, official."""
    names, labels = (np.atleast_1d(found) for found in read_mat(path, ("file_list", "labels")))
    matches = [PATH.fullmatch(name) if isinstance(name, str) else None for name in names.flat]
    if names.shape != labels.shape or labels.dtype.kind not in "iuf" or None in matches:
        raise DataError(
            f"{path}: not a list of pictures such as n02085620-Chihuahua/n02085620_7.jpg with a label each; put a good "
            "copy in its place"
        )
    breeds = [match["breed"] for match in matches if match]
    return pd.DataFrame({"path": names, "class_name": breeds, "label": labels}).assign(official=official)


def _boxes(annotations: Path, paths: pd.Series) -> dict[str, pd.Series]:
    """The columns of boxes of all pictures; NaN where a picture is not annotated."""
    ends, damaged = [], []
    for path in paths:
        file = (annotations / path).with_suffix("")
        try:
            ends.append(_ends(file) if file.is_file() else [np.nan] * 4)
        except (ElementTree.ParseError, ValueError, TypeError):
            damaged.append(file.relative_to(annotations).as_posix())
    if damaged:
        what_next = "put good copies in their place"
        raise DataError(f"{annotations}: no boxes can be read from {shown(damaged)}; {what_next}")
    first_x, first_y, last_x, last_y = (pd.Series(each, paths.index) for each in zip(*ends, strict=True))
    return dict(zip(BOX, (first_x, first_y, last_x - first_x, last_y - first_y), strict=True))


def _ends(file: Path) -> list[float]:
    """The corners of the box around all dogs of an annotation: x and y of the first, x and y of the last."""
    boxes = ElementTree.parse(file).iterfind("object/bndbox")
    corners = np.array([[float(box.findtext(end) or "nan") for end in BOX_ENDS] for box in boxes])
    if corners.size == 0 or not (corners[:, :2] < corners[:, 2:]).all():
        raise ValueError("no box, or an empty one")
    return [*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0)]
