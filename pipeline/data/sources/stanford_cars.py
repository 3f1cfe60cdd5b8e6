"""Stanford Cars (Krause et al. 2013): 196 makes, models and years, from a folder in torchvision's layout.

    stanford_cars/cars_train/00001.jpg, cars_test/00001.jpg
    stanford_cars/devkit/cars_meta.mat, cars_train_annos.mat
    stanford_cars/cars_test_annos_withlabels.mat            there, or in devkit

torchvision's own loader leaves out the boxes, which these files hold.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.common.errors import DataError
from pipeline.data.sources.own_pictures import BOX
from pipeline.data.sources.published_folder import PublishedFolder, first_with, read_mat, sample_table_of

ANNOTATIONS = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
FIELDS = ("fname", "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
WHAT_NEXT = (
    "set data.archive to the folder stanford_cars with cars_train, cars_test, devkit and "
    "cars_test_annos_withlabels.mat (cars_test_annos.mat has no classes)"
)


class StanfordCars(PublishedFolder):
    """The folder `stanford_cars`, or the one above it."""

    prefix = "stanford_cars"

    @property
    def expected(self) -> tuple[int, int, int]:
        """As published."""
        return 196, 8_144, 8_041

    def find_root(self, raw: Path) -> Path:  # noqa: ARG002  # nothing is fetched
        """The folder with devkit."""
        return first_with(self.given, (".", "stanford_cars"), "devkit", WHAT_NEXT).parent

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table: the training images, followed by the test images, in the order of their lists."""
        meta = first_with(root, ("devkit",), "cars_meta.mat", WHAT_NEXT)
        names = np.atleast_1d(read_mat(meta, ("class_names",))[0])
        if not all(isinstance(name, str) for name in names.flat):
            raise DataError(f"{meta}: class_names are no texts; put a good copy in its place")
        rows = [_annotated(root, split, names.ravel().tolist()) for split in ANNOTATIONS]
        return sample_table_of(pd.concat(rows, ignore_index=True), root)


def _annotated(root: Path, split: str, class_names: list[str]) -> pd.DataFrame:
    """The rows of a split: path, class_name, official, boxes."""
    path = first_with(root, ("devkit", "."), ANNOTATIONS[split], WHAT_NEXT)
    annotations = np.atleast_1d(read_mat(path, ("annotations",))[0]).ravel()
    if missing := [name for name in FIELDS if name not in (annotations.dtype.names or ())]:
        raise DataError(f"{path}: no {', '.join(missing)} in its annotations; {WHAT_NEXT}")
    try:
        numbers = [[int(row[name]) for name in FIELDS[1:]] for row in annotations]
        files = [f"cars_{split}/{row['fname']}" for row in annotations if isinstance(row["fname"], str)]
        label, x1, y1, x2, y2 = np.array(numbers).reshape(-1, 5).T
        classes = [class_names[number - 1] for number in label]
        if len(files) < len(label) or not ((label > 0).all() and (x1 <= x2).all() and (y1 <= y2).all()):
            raise ValueError
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise DataError(
            f"{path}: an annotation is not a file's name, a class of 1 to {len(class_names)} and a box; put a good "
            "copy in its place"
        ) from error
    boxes = dict(zip(BOX, (x1 - 1.0, y1 - 1.0, x2 - x1 + 1.0, y2 - y1 + 1.0), strict=True))
    return pd.DataFrame({"path": files, "class_name": classes, **boxes}).assign(official=split)
