"""NABirds from a small folder in its format."""

from pathlib import Path

import pytest

from pipeline.cli.main import run
from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.data import sample_table, taxonomy
from pipeline.data.sources import cub_layout
from pipeline.data.sources.nabirds import NABirds
from tests.helpers.own_pictures import draw, published

CLASSES = {
    0: "Birds",
    1: "Perching Birds",
    3: "Hawks, Kites",
    20: "Wood-Warblers",
    40: "Osprey",
    41: "Red-tailed Hawk",
    42: "Palm Warbler",
    817: "Osprey",
    818: "Red-tailed Hawk (Dark morph )",
    901: "Palm Warbler (Adult male)",
}
PARENTS = {1: 0, 3: 0, 40: 3, 817: 40, 41: 3, 818: 41, 20: 1, 42: 20, 901: 42}
ROWS = [("0a-1", 901, 1), ("0a-2", 817, 0), ("7e-9", 817, 1), ("5f", 901, 0), ("00", 818, 1), ("01", 818, 0)]


def write(folder: Path) -> Path:
    """Six pictures of three visual categories in NABirds' layout; the folder."""
    paths = {name: f"{class_id:04}/{name.replace('-', '')}.jpg" for name, class_id, _ in ROWS}
    for path in paths.values():
        draw(folder / "images" / path)
    contents = {
        "images.txt": [f"{name} {path}" for name, path in paths.items()],
        "image_class_labels.txt": [f"{name} {class_id}" for name, class_id, _ in ROWS],
        "classes.txt": [f"{class_id} {name}" for class_id, name in CLASSES.items()],
        "train_test_split.txt": [f"{name} {flag}" for name, _, flag in ROWS],
        "bounding_boxes.txt": [f"{name} 2 3 10 12" for name, _, _ in ROWS],
        "sizes.txt": [f"{name} 24 20" for name, _, _ in ROWS],
        "hierarchy.txt": [f"{child} {parent}" for child, parent in PARENTS.items()],
    }
    for name, lines in contents.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def source(folder: Path) -> NABirds:
    return NABirds(
        DataConfig.model_validate({"source": "nabirds", "archive": folder, "root": folder.parent / "d"})
    )


def test_the_classes_are_the_visual_categories_that_have_images(tmp_path: Path) -> None:
    made = source(write(tmp_path / "nabirds"))
    root = made.find_root(tmp_path)
    table = made.read(root)
    sample_table.check(table, root)
    assert sample_table.class_names(table) == [CLASSES[817], CLASSES[818], CLASSES[901]]
    assert table["id"].tolist() == [1, 2, 3, 4, 5, 6]
    assert table["label"].tolist() == [2, 0, 0, 2, 1, 1]
    assert table["official"].tolist() == ["train", "test", "train", "test", "train", "test"]
    assert table.loc[0, ["box_x", "box_y", "box_w", "box_h"]].tolist() == [2, 3, 10, 12]
    assert all((made.images(root) / path).is_file() for path in table["path"])
    assert source(tmp_path).find_root(tmp_path) == tmp_path / "nabirds"


def test_two_categories_of_one_name_get_their_ids(tmp_path: Path) -> None:
    folder = write(tmp_path / "nabirds")
    (folder / "classes.txt").write_text("817 Osprey\n818 Osprey\n901 Hawk\n40 Osprey\n")
    table = source(folder).read(folder)
    assert sample_table.class_names(table) == ["Osprey (817)", "Osprey (818)", "Hawk"]


def test_the_hierarchy_gives_species_families_and_orders(tmp_path: Path) -> None:
    folder = write(tmp_path / "nabirds")
    table = source(folder).taxonomy(folder)
    assert table is not None
    assert list(table.columns) == ["class", "species", "family", "order"]
    assert table.to_numpy().tolist() == [
        [CLASSES[817], "Osprey", "Hawks, Kites", "Hawks, Kites"],
        [CLASSES[818], "Red-tailed Hawk", "Hawks, Kites", "Hawks, Kites"],
        [CLASSES[901], "Palm Warbler", "Wood-Warblers", "Perching Birds"],
    ]
    assert taxonomy.of_table(table, table["class"], folder).ranks == ("species", "family", "order")
    (folder / "hierarchy.txt").unlink()
    assert source(folder).taxonomy(folder) is None


def test_two_species_of_one_name_get_their_ids(tmp_path: Path) -> None:
    folder = write(tmp_path / "nabirds")
    text = (folder / "classes.txt").read_text()
    (folder / "classes.txt").write_text(text.replace("41 Red-tailed Hawk\n", "41 Osprey\n"))
    table = source(folder).taxonomy(folder)
    assert table is not None and table["species"].tolist() == ["Osprey (40)", "Osprey (41)", "Palm Warbler"]


@pytest.mark.parametrize("lines", ["817 40\n818 40\n901 40\n40 3\n3 40\n", "817 40\n40 5\n5 0\n", "817 0\n"])
def test_a_hierarchy_that_does_not_lead_to_its_root_is_one_error(tmp_path: Path, lines: str) -> None:
    folder = write(tmp_path / "nabirds")
    (folder / "hierarchy.txt").write_text(lines)
    with pytest.raises(
        DataError, match=r"class ids 817, 818, 901 \(3 in all\) do not lead to the root"
    ) as caught:
        source(folder).taxonomy(folder)
    assert str(caught.value).endswith("move hierarchy.txt out of the folder, and no hierarchy is used")


def test_without_boxes_no_image_has_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "nabirds")
    (folder / "bounding_boxes.txt").unlink()
    assert source(folder).read(folder)["box_x"].isna().all()


def test_what_is_damaged_or_missing_is_one_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "nabirds")
    (folder / "train_test_split.txt").write_text("0a-1 1\nnothing\n0a-1 1\n")
    with pytest.raises(DataError) as caught:
        source(folder).read(folder)
    for problem in (
        "line 2 (nothing) (1 in all) not of the form `id flag`",
        "ids 0a-1 (1 in all) more than once",
        "no row for image ids 00, 01, 0a-2, 5f, 7e-9 (5 in all)",
    ):
        assert f"\n  train_test_split.txt: {problem}" in str(caught.value)
    (folder / "images.txt").unlink()
    with pytest.raises(DataError, match=r"no images\.txt in it; set data\.archive to the folder nabirds"):
        source(folder).find_root(tmp_path)


def test_the_digest_is_that_of_the_lists(tmp_path: Path) -> None:
    folder = write(tmp_path / "nabirds")
    assert source(folder).digest(folder) == cub_layout.text_digest(folder)


def test_from_its_folder_to_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "nabirds")
    evaluated, predicted = published("nabirds", folder, tmp_path, capsys)
    assert evaluated["n"] == 3
    assert {entry["class"] for entry in predicted} <= set(CLASSES.values())
    assert len(list((tmp_path / "data").glob("nabirds-*/hierarchy.csv"))) == 1


def test_without_a_folder_the_sentence_says_where_it_is_to_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "data.source=nabirds"]) == 2
    assert "its download needs a form (dl.allaboutbirds.org/nabirds); unpack it" in capsys.readouterr().err
