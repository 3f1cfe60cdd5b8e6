"""NABirds (Van Horn et al. 2015): 555 visual categories of 404 North American species, from its own files.

    nabirds/images/0817/0000139e21dc4d0cbfe14cae3c85c829.jpg
    nabirds/images.txt, image_class_labels.txt, classes.txt, train_test_split.txt
    nabirds/bounding_boxes.txt, hierarchy.txt            may be absent

Its lists are those of CUB-200-2011, with texts as the images' ids. Classes are the categories that have images: what
else classes.txt names are species and groups, the inner nodes of hierarchy.txt, some by the name of a category.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.common.errors import DataError, name_some
from pipeline.data.sources import cub_layout
from pipeline.data.sources.published_folder import PublishedFolder, first_with

LINES = cub_layout.lines_of(r"\S+")
HIERARCHY = "hierarchy.txt"
MENDED = f"mend it, or move {HIERARCHY} out of the folder, and no hierarchy is used"
PARENTS = ("child parent", r"(?P<id>[0-9]{1,15})[ \t]+(?P<parent>[0-9]{1,15})")
RANKS = ("species", "family", "order")


class NABirds(PublishedFolder):
    """The folder `nabirds`, or the one above it."""

    prefix = "nabirds"

    @property
    def expected(self) -> tuple[int, int, int]:
        """As published."""
        return 555, 23_929, 24_633

    def find_root(self, raw: Path) -> Path:  # noqa: ARG002  # nothing is fetched
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

    def taxonomy(self, root: Path) -> pd.DataFrame | None:
        """The species, family and order of each category, by hierarchy.txt; None where there is none.

        A category's parent is its species, and the group below the root its order. Only perching birds have families;
        of other birds the order is taken for it.
        """
        if not (root / HIERARCHY).is_file():
            return None
        problems: list[str] = []
        classes, labels = (
            cub_layout.parse(root / name, *LINES[name], problems)
            for name in ("classes.txt", "image_class_labels.txt")
        )
        links = cub_layout.parse(root / HIERARCHY, *PARENTS, problems)
        parents = dict(zip(links["id"], links["parent"].astype("int64"), strict=True))
        categories = visual_categories(classes, labels["class_id"].astype("int64"))
        lines = {each: _above(each, parents) for each in categories["id"]}
        names = dict(zip(classes["id"], classes["class_name"], strict=True))
        if lost := [each for each, above in lines.items() if not above or not names.keys() >= set(above)]:
            problems.append(
                f"{HIERARCHY}: class ids {name_some(lost)} do not lead to the root by ids of classes.txt"
            )
        if problems:
            raise DataError(
                "\n  ".join([f"{root}: the hierarchy is not as it should be:", *problems, MENDED])
            )
        ranks = {
            rank: _distinct(pd.Series([above[number] for above in map(_of_three, lines.values())]), names)
            for number, rank in enumerate(RANKS)
        }
        return pd.DataFrame({"class": categories["class_name"].to_numpy(), **ranks})

    def digest(self, root: Path) -> str:
        """The SHA-256 of the lists."""
        return cub_layout.text_digest(root)


def visual_categories(classes: pd.DataFrame, used: pd.Series) -> pd.DataFrame:
    """The classes that have images; where two have one name, each with its id: "Oak Titmouse (817)"."""
    kept = classes[classes["id"].isin(used)]
    doubled = kept["class_name"].duplicated(keep=False) & ~kept["id"].duplicated(keep=False)
    numbered = kept["class_name"] + kept["id"].map(" ({})".format)
    return kept.assign(class_name=kept["class_name"].where(~doubled, numbered))


def _above(category: int, parents: Mapping[int, int]) -> list[int]:
    """The nodes above a category, without the root; none where the way up is broken or runs in a circle."""
    above: list[int] = []
    node = category
    while node in parents:
        node = parents[node]
        above.append(node)
        if len(above) > len(parents):
            return []
    return above[:-1]


def _of_three(above: list[int]) -> tuple[int, int, int]:
    """Species, family and order of the nodes above a category."""
    return above[0], above[-2] if len(above) > 2 else above[-1], above[-1]


def _distinct(nodes: "pd.Series[int]", names: Mapping[int, str]) -> list[str]:
    """The names of nodes of a rank; where two nodes have one name, each with its id."""
    named = {node: names[node] for node in nodes.unique()}
    counts = Counter(named.values())
    return [named[node] if counts[named[node]] == 1 else f"{named[node]} ({node})" for node in nodes]
