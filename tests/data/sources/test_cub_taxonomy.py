"""Genus, family and order of CUB's classes."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.config.load import load_config
from pipeline.data import taxonomy
from pipeline.data.sources import cub200

# Written down by hand, and not from the file.
LOOKED_UP = {
    "001.Black_footed_Albatross": ("Phoebastria", "Diomedeidae", "Procellariiformes"),
    "013.Bobolink": ("Dolichonyx", "Icteridae", "Passeriformes"),
    "017.Cardinal": ("Cardinalis", "Cardinalidae", "Passeriformes"),
    "054.Blue_Grosbeak": ("Passerina", "Cardinalidae", "Passeriformes"),
    "086.Pacific_Loon": ("Gavia", "Gaviidae", "Gaviiformes"),
    "090.Red_breasted_Merganser": ("Mergus", "Anatidae", "Anseriformes"),
    "145.Elegant_Tern": ("Thalasseus", "Laridae", "Charadriiformes"),
    "192.Downy_Woodpecker": ("Dryobates", "Picidae", "Piciformes"),
    "200.Common_Yellowthroat": ("Geothlypis", "Parulidae", "Passeriformes"),
}


def folder(path: Path, names: list[str]) -> Path:
    """A folder in CUB's layout with a picture of each class in its tables."""
    ids = range(1, len(names) + 1)
    contents = {
        "images.txt": [f"{i} {name}/bird_{i}.jpg" for i, name in zip(ids, names, strict=True)],
        "image_class_labels.txt": [f"{i} {i}" for i in ids],
        "classes.txt": [f"{i} {name}" for i, name in zip(ids, names, strict=True)],
        "train_test_split.txt": [f"{i} 1" for i in ids],
    }
    for i, name in zip(ids, names, strict=True):
        picture = path / "images" / name / f"bird_{i}.jpg"
        picture.parent.mkdir(parents=True)
        picture.touch()
    for name, lines in contents.items():
        (path / name).write_text("\n".join(lines) + "\n")
    return path


def test_each_of_the_200_classes_has_one_place_in_the_tree() -> None:
    table = pd.read_csv(cub200.TAXONOMY)
    assert [int(name[:3]) for name in table["class"]] == list(range(1, 201))
    tree = taxonomy.of_table(table, table["class"].tolist(), cub200.TAXONOMY)
    # Barz and Denzler (arXiv:1901.09054) have as many.
    assert str(tree) == "121 genus, 37 family, 13 order"


@pytest.mark.parametrize("name", LOOKED_UP)
def test_classes_stand_where_a_birder_has_them(name: str) -> None:
    row = pd.read_csv(cub200.TAXONOMY).set_index("class").loc[name]
    assert tuple(row) == LOOKED_UP[name]


def test_some_of_the_classes_have_their_part_and_other_names_have_none(tmp_path: Path) -> None:
    birds = folder(tmp_path / "birds", ["200.Common_Yellowthroat", "013.Bobolink"])
    source = cub200.Cub200(load_config(None, [f"data.archive={birds}"]).data)
    part = source.taxonomy(birds)
    assert part is not None
    assert part["genus"].tolist() == ["Dolichonyx", "Geothlypis"]
    assert source.taxonomy(folder(tmp_path / "cars", ["013.Bobolink", "Audi"])) is None
