"""The text files of CUB-200-2011: read, or all their problems named at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.common import tables
from pipeline.common.errors import DataError
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.data.sources import cub200, cub_layout

CLASSES = {3: "003.Sooty_Albatross", 5: "005.Crested_Auklet", 7: "007.Parakeet_Auklet"}  # 5 has no images
ROWS = [(1, 7, 1), (2, 3, 0), (3, 3, 1), (4, 7, 0), (5, 7, 1), (6, 3, 1)]  # id, class, flag


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six pictures of two classes in CUB's layout."""
    folder = tmp_path / "CUB_200_2011"
    paths = {number: f"{CLASSES[class_id]}/bird_{number}.jpg" for number, class_id, _ in ROWS}
    for number, path in paths.items():
        picture = folder / "images" / path
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5, 3), number, dtype=np.uint8)).save(picture)
    contents = {
        "images.txt": [f"{number} {path}" for number, path in paths.items()],
        "image_class_labels.txt": [f"{number} {class_id}" for number, class_id, _ in ROWS],
        "classes.txt": [f"{class_id} {name}" for class_id, name in CLASSES.items()],
        "train_test_split.txt": [f"{number} {flag}" for number, _, flag in ROWS],
        "bounding_boxes.txt": [f"{number} {number}.0 2.5 30.0 40.0" for number, _, _ in ROWS],
    }
    for name, lines in contents.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def change(path: Path, edit: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")


def problems_of(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        cub_layout.read(root)
    message = str(caught.value)
    assert message.startswith(f"{root}: ") and message.endswith(cub_layout.WHAT_NEXT)
    return message


def test_read_gives_one_row_an_image(root: Path) -> None:
    samples = cub_layout.read(root)
    sample_table.check(samples, root)
    assert samples.columns.tolist() == sample_table.SOURCE_COLUMNS
    assert samples["id"].tolist() == [1, 2, 3, 4, 5, 6]
    assert samples["label"].tolist() == [1, 0, 0, 1, 1, 0]
    assert sample_table.class_names(samples) == [CLASSES[3], CLASSES[7]]
    assert samples["official"].tolist() == ["train", "test", "train", "test", "train", "train"]
    assert samples.loc[2, ["box_x", "box_y", "box_w", "box_h"]].tolist() == [3.0, 2.5, 30.0, 40.0]
    assert all((root / "images" / path).is_file() for path in samples["path"])


def test_read_goes_by_the_text_files_and_not_by_what_lies_about(root: Path) -> None:
    (root / "images" / CLASSES[3] / "stray_rgb.jpg").write_bytes(b"")
    assert len(cub_layout.read(root)) == 6


def test_order_of_lines_line_ends_and_blank_lines_do_not_matter(root: Path) -> None:
    expected = cub_layout.read(root)
    for name in ("image_class_labels.txt", "classes.txt", "train_test_split.txt", "bounding_boxes.txt"):
        lines = (root / name).read_text().replace(" ", "\t").splitlines()
        (root / name).write_bytes(b"\xef\xbb\xbf" + ("\r\n".join(["", *reversed(lines)])).encode())
    pd.testing.assert_frame_equal(cub_layout.read(root), expected)


def test_a_table_survives_being_written(root: Path, tmp_path: Path) -> None:
    samples = cub_layout.read(root)
    tables.write_csv(samples, tmp_path / "samples.csv")
    again = sample_table.read(tmp_path / "samples.csv", sample_table.SOURCE_COLUMNS)
    pd.testing.assert_frame_equal(again, samples, check_dtype=False)


@pytest.mark.parametrize("name", cub_layout.PER_IMAGE)
def test_a_missing_row_is_named(root: Path, name: str) -> None:
    change(root / name, lambda lines: [*lines[:1], *lines[2:4], *lines[5:]])
    assert f"\n  {name}: no row for image ids 2, 5 (2 in all)\n" in problems_of(root)


def test_a_missing_class_is_named(root: Path) -> None:
    change(root / "classes.txt", lambda lines: lines[:2])
    assert "\n  image_class_labels.txt: class ids 7 (1 in all) not in classes.txt\n" in problems_of(root)


@pytest.mark.parametrize("name", cub_layout.LINES)
def test_an_empty_file_and_a_folder_in_its_place_are_named_alone(root: Path, name: str) -> None:
    (root / name).write_text("\n")
    assert problems_of(root).splitlines()[1:-1] == [f"  {name}: empty"]
    (root / name).unlink()
    (root / name).mkdir()
    assert problems_of(root).splitlines()[1:-1] == [f"  {name}: a folder, and not a text"]


@pytest.mark.parametrize("name", [name for name in cub_layout.LINES if name != cub_layout.BOXES])
def test_a_missing_file_is_named_alone(root: Path, name: str) -> None:
    (root / name).unlink()
    assert problems_of(root).splitlines()[1:-1] == [f"  {name}: missing"]
    with pytest.raises(DataError, match=f"{name} .*missing"):
        cub_layout.text_digest(root)


def test_without_a_file_of_boxes_no_image_has_one(root: Path) -> None:
    with_boxes, digest = cub_layout.read(root), cub_layout.text_digest(root)
    (root / cub_layout.BOXES).unlink()
    samples = cub_layout.read(root)
    boxes = ["box_x", "box_y", "box_w", "box_h"]
    assert samples[boxes].isna().all(axis=None) and (samples[boxes].dtypes == "float64").all()
    pd.testing.assert_frame_equal(samples.drop(columns=boxes), with_boxes.drop(columns=boxes))
    assert cub_layout.text_digest(root) != digest


@pytest.mark.parametrize("name", cub_layout.LINES)
def test_a_malformed_line_is_named_with_its_number(root: Path, name: str) -> None:
    change(root / name, lambda lines: [*lines, "", "17"])
    number = len((root / name).read_text().splitlines())
    form = cub_layout.LINES[name][0]
    assert f"\n  {name}: line {number} (17) (1 in all) not of the form `{form}`" in problems_of(root)


@pytest.mark.parametrize("name", cub_layout.LINES)
def test_a_doubled_id_is_named(root: Path, name: str) -> None:
    change(root / name, lambda lines: [*lines, lines[0]])
    first = 3 if name == "classes.txt" else 1
    assert f"\n  {name}: ids {first} (1 in all) more than once\n" in problems_of(root)


LINES_THAT_ARE_WRONG = {
    "flag": ("train_test_split.txt", "2 2", "a flag other than 0 and 1 for image ids 2 (1 in all)"),
    "absolute": ("images.txt", "2 /etc/passwd", "/etc/passwd (1 in all) outside the folder images"),
    "parent": ("images.txt", "2 ../images.txt", "../images.txt (1 in all) outside the folder images"),
    "absent": ("images.txt", "2 a/none.jpg", "a/none.jpg (1 in all) not in the folder images"),
    "too long": ("images.txt", f"2 a/{'n' * 300}", f"a/{'n' * 300} (1 in all) not in the folder images"),
    "backslash": (
        "images.txt",
        "2 a\\b.jpg",
        "a\\b.jpg (1 in all) with \\ between folders, where / is expected",
    ),
    "twice": (
        "images.txt",
        f"2 {CLASSES[7]}/bird_1.jpg",
        f"{CLASSES[7]}/bird_1.jpg (1 in all) more than once",
    ),
    "box": ("bounding_boxes.txt", "2 1.0 1.0 0.0 5.0", "an empty box for image ids 2 (1 in all)"),
    "number": (
        "bounding_boxes.txt",
        "2 1.0 nan 1.0 5.0",
        "line 2 (2 1.0 nan 1.0 5.0) (1 in all) not of the form",
    ),
    "class": ("image_class_labels.txt", "2 99", "class ids 99 (1 in all) not in classes.txt"),
    "name": ("classes.txt", f"5 {CLASSES[3]}", f"{CLASSES[3]} (1 in all) more than once"),
}


@pytest.mark.parametrize("kind", LINES_THAT_ARE_WRONG)
def test_a_value_that_means_nothing_is_named(root: Path, kind: str) -> None:
    name, line, problem = LINES_THAT_ARE_WRONG[kind]
    change(root / name, lambda lines: [lines[0], line, *lines[2:]])
    assert f"\n  {name}: {problem}" in problems_of(root)


def test_several_problems_are_all_listed_at_once(root: Path) -> None:
    change(root / "bounding_boxes.txt", lambda lines: lines[:3])
    change(root / "train_test_split.txt", lambda lines: [*lines[:4], "5 x", lines[5]])
    change(root / "image_class_labels.txt", lambda lines: [*lines, "one two"])
    (root / "images" / CLASSES[3] / "bird_6.jpg").unlink()
    (root / "classes.txt").write_bytes(b"\xff\xfe")
    assert problems_of(root).splitlines()[1:-1] == [
        "  image_class_labels.txt: line 7 (one two) (1 in all) not of the form `id class`",
        "  classes.txt: not a text in UTF-8 (byte 0)",
        "  bounding_boxes.txt: no row for image ids 4, 5, 6 (3 in all)",
        f"  images.txt: {CLASSES[3]}/bird_6.jpg (1 in all) not in the folder images",
        "  train_test_split.txt: a flag other than 0 and 1 for image ids 5 (1 in all)",
    ]


def test_many_values_are_counted_and_few_are_shown(root: Path) -> None:
    for _, class_id, _ in ROWS:
        for picture in (root / "images" / CLASSES[class_id]).glob("*.jpg"):
            picture.unlink()
    message = problems_of(root)
    assert message.count(".jpg") == 5 and ", ... (6 in all) not in the folder images" in message


def test_find_root_looks_into_the_folder(root: Path, tmp_path: Path) -> None:
    assert cub_layout.find_root(root) == root
    assert cub_layout.find_root(tmp_path) == root
    renamed = root.rename(tmp_path / "birds")
    assert cub_layout.find_root(tmp_path) == renamed
    for folder in (renamed / "images", tmp_path / "absent"):
        with pytest.raises(DataError, match=r"neither it nor a folder in it holds images\.txt") as caught:
            cub_layout.find_root(folder)
        assert "write images.txt, image_class_labels.txt, classes.txt, train_test_split.txt as" in str(
            caught.value
        )


def test_the_digest_depends_on_each_text_file_and_on_nothing_else(root: Path) -> None:
    digests = {cub_layout.text_digest(root)}
    (root / "attributes.txt").write_text("unused")
    assert cub_layout.text_digest(root) in digests
    for name in cub_layout.LINES:
        change(root / name, lambda lines: lines[:-1])
        digests.add(cub_layout.text_digest(root))
    assert len(digests) == 1 + len(cub_layout.LINES)


def official() -> pd.DataFrame:
    """A table with the official numbers of classes and images, and of images a class."""
    rows = []
    for label in range(200):
        train = 30 if label < 194 else 29
        test = 11 if label == 0 else 30 if label <= 188 else 13
        rows += [(label, "train")] * train + [(label, "test")] * test
    samples = pd.DataFrame(rows, columns=["label", "official"])
    samples["class_name"] = samples["label"].map("{:03d}.Bird".format)
    return samples.assign(id=range(len(samples)), box_x=1.0)


def test_the_official_numbers_pass(tmp_path: Path) -> None:
    cub200.check_official(official(), tmp_path)


def test_other_numbers_are_all_named(tmp_path: Path) -> None:
    samples = official()
    fewer = samples.drop(samples.index[:2]).iloc[:-1]  # two train images of 000, one test image of 199
    with pytest.raises(DataError) as caught:
        cub200.check_official(fewer, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: not as it was unpacked from the official CUB-200-2011: "
        "5,992 train images where 5,994 are expected; "
        "000.Bird (1 in all) without 29 to 30 train images; 5,793 test images where 5,794 are expected; "
        "rename it and run `plumage data` with the same --config and keys, which makes it anew"
    )
    moved = samples.copy()
    moved.loc[moved["label"] == 0, "official"] = "train"  # a class without test images
    with pytest.raises(DataError, match=r"000\.Bird \(1 in all\) without 11 to 30 test images"):
        cub200.check_official(moved, tmp_path)
    with pytest.raises(DataError, match="199 classes where 200 are expected"):
        cub200.check_official(samples[samples["label"] != 7], tmp_path)
    with pytest.raises(DataError, match=r"no box for image ids 3 \(1 in all\)"):
        cub200.check_official(samples.assign(box_x=samples["box_x"].where(samples["id"] != 3)), tmp_path)


def own(root: Path, *more: str) -> Config:
    return load_config(
        None, [f"data.archive={root}", f"data.root={root.parent / 'data'}", "data.resize_px=16", *more]
    )


def test_a_folder_of_ones_own_is_taken_as_it_is_without_a_digest(root: Path) -> None:
    (root / cub_layout.BOXES).unlink()
    config = own(root, "data.image_px=16", "data.val_fraction=0")
    assert not cub200.is_official(config.data)
    assert prepare.prepare(config).samples["class_name"].nunique() == 2
    assert cub200.is_official(load_config(None, ["data.archive=some.tgz"]).data)
    root.rename(root.with_name("elsewhere"))
    assert not cub200.is_official(config.data), "a folder that is not there now is still no archive"


def test_a_digest_without_its_archive_is_refused_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cub200.download, "fetch", lambda *_: pytest.fail("nothing is to be downloaded"))
    config = load_config(None, [f'data.archive_md5="{"0" * 32}"', f"data.root={tmp_path}"])
    with pytest.raises(
        DataError, match="^data.archive_md5=0+: of another archive .*; set data.archive to that"
    ):
        prepare.prepare(config)
    assert not list(tmp_path.glob("*/raw"))


@pytest.mark.parametrize("name", ["images.txt", "classes.txt", "a picture"])
def test_what_the_user_gave_is_never_to_be_deleted(root: Path, name: str) -> None:
    wrong = root / "images" / CLASSES[3] / "bird_2.jpg" if name == "a picture" else root / name
    wrong.write_text("wrong")
    with pytest.raises(DataError) as caught:
        prepare.prepare(own(root, "data.image_px=16"))
    message = str(caught.value)
    assert wrong.name in message and str(root) in message
    assert "delete" not in message and "remove" not in message
    assert sorted(path.name for path in root.iterdir()) == sorted([*cub_layout.LINES, "images"])
