"""NABirds (Van Horn et al. 2015): 555 visual categories of 404 North American species, from its own files.

    nabirds/images/0817/0000139e21dc4d0cbfe14cae3c85c829.jpg
    nabirds/images.txt, image_class_labels.txt, classes.txt, train_test_split.txt
    nabirds/bounding_boxes.txt, hierarchy.txt            may be absent

Its lists are those of CUB-200-2011, with texts as the images' ids. Classes are the categories that have images: what
else classes.txt names are species and groups, the inner nodes of hierarchy.txt, some by the name of a category.
"""

from pathlib import Path

import pandas as pd

from pipeline.data.sources import cub_layout
from pipeline.data.sources.published_folder import PublishedFolder, first_with

LINES = cub_layout.lines_of(r"\S+")


class NABirds(PublishedFolder):
    """The folder `nabirds`, or the one above it."""

    prefix = "nabirds"

    @property
    def expected(self) -> tuple[int, int, int]:
        """As published."""
        return 555, 23_929, 24_633

    def find_root(self, raw: Path) -> Path:  # noqa: ARG002  # the protocol's
        """The folder with images.txt."""
        what_next = (
            "set data.archive to the folder nabirds with images.txt, image_class_labels.txt, classes.txt, ..."
        )
        return first_with(self.given, (".", "nabirds"), "images.txt", what_next).parent

    def images(self, root: Path) -> Path:
        """The folder `images`."""
        return root / "images"

    def read(self, root: Path) -> pd.DataFrame:
        """The sample table: images numbered from 1 in the order of images.txt."""
        table = cub_layout.read(root, LINES, visual_categories)
        return table.assign(id=range(1, len(table) + 1))

    def digest(self, root: Path) -> str:
        """The SHA-256 of the lists."""
        return cub_layout.text_digest(root)


def visual_categories(classes: pd.DataFrame, used: pd.Series) -> pd.DataFrame:
    """The classes that have images; where two have one name, each with its id: "Oak Titmouse (817)"."""
    kept = classes[classes["id"].isin(used)]
    doubled = kept["class_name"].duplicated(keep=False) & ~kept["id"].duplicated(keep=False)
    numbered = kept["class_name"] + kept["id"].map(" ({})".format)
    return kept.assign(class_name=kept["class_name"].where(~doubled, numbered))
