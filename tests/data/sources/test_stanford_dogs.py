"""Stanford Dogs from small files in its formats: unpacked, as archives, and as archives that are gone again."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.cli.main import run
from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.data import sample_table
from pipeline.data.sources.stanford_dogs import StanfordDogs
from tests.helpers.own_pictures import draw, published

BREEDS = ["n02085620-Chihuahua", "n02098105-soft-coated_wheaten_terrier"]
KEYS = ["data.source=stanford_dogs", "data.resize_px=20", "data.image_px=16"]


def write(folder: Path) -> Path:
    """Three training and two test pictures of two breeds; the folder."""
    for name, numbers in (("train", (1, 2, 3)), ("test", (4, 5))):
        paths = [f"{breed}/{breed[:9]}_{number}.jpg" for breed in BREEDS for number in numbers]
        for path in paths:
            draw(folder / "Images" / path)
            annotation = folder / "Annotation" / path.removesuffix(".jpg")
            annotation.parent.mkdir(parents=True, exist_ok=True)
            annotation.write_text(f"<annotation>{box(2, 3, 8, 9)}{box(4, 1, 20, 7)}</annotation>\n")
        cells = np.array([[path] for path in paths], dtype=object)
        labels = [[1 + BREEDS.index(path.partition("/")[0])] for path in paths]
        savemat(folder / f"{name}_list.mat", {"file_list": cells, "annotation_list": cells, "labels": labels})
    return folder


def box(*ends: int) -> str:
    corners = "".join(
        f"<{name}>{end}</{name}>" for name, end in zip(["xmin", "ymin", "xmax", "ymax"], ends, strict=True)
    )
    return f"<object><name>dog</name><bndbox>{corners}</bndbox></object>"


def pack(folder: Path, target: Path) -> Path:
    """What `write` wrote, as the archives that the data set comes in; their folder."""
    target.mkdir()
    parts = {"images": ["Images"], "annotation": ["Annotation"], "lists": ["train_list.mat", "test_list.mat"]}
    for name, members in parts.items():
        with tarfile.open(target / f"{name}.tar", "w") as archive:
            for member in members:
                archive.add(folder / member, member)
    return target


def source(folder: Path) -> StanfordDogs:
    return StanfordDogs(
        DataConfig.model_validate(
            {"source": "stanford_dogs", "archive": folder, "root": folder.parent / "data"}
        )
    )


def nested(folder: Path) -> Path:
    """The same files as a mirror of the data set has them: one folder down."""
    for name, inner in (("images", "Images"), ("annotations", "Annotation")):
        (folder / f"{name}.part").mkdir()
        shutil.move(folder / inner, folder / f"{name}.part" / inner)
        (folder / f"{name}.part").rename(folder / name)
    return folder


@pytest.mark.parametrize("is_nested", [False, True])
def test_the_lists_give_breeds_and_splits_and_the_annotations_boxes(tmp_path: Path, is_nested: bool) -> None:
    folder = write(tmp_path / "dogs")
    made = source(nested(folder) if is_nested else folder)
    root = made.find_root(tmp_path)
    table = made.read(root)
    sample_table.check(table, root)
    assert sample_table.class_names(table) == ["Chihuahua", "soft-coated_wheaten_terrier"]
    assert table.groupby(["class_name", "official"]).size().tolist() == [2, 3, 2, 3]
    assert table.loc[4, ["box_x", "box_y", "box_w", "box_h"]].tolist() == [2, 1, 18, 8]  # around both dogs
    assert all((made.images(root) / path).is_file() for path in table["path"])


def test_a_picture_without_an_annotation_has_no_box(tmp_path: Path) -> None:
    folder = write(tmp_path / "dogs")
    next((folder / "Annotation").rglob("*_4")).unlink()
    assert source(folder).read(folder)["box_x"].isna().sum() == 1
    shutil.rmtree(folder / "Annotation")
    assert source(folder).read(folder)["box_x"].isna().all()


def test_from_its_folder_to_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated, predicted = published("stanford_dogs", write(tmp_path / "dogs"), tmp_path, capsys)
    assert evaluated["n"] == 4
    assert {entry["class"] for entry in predicted} == {"Chihuahua", "soft-coated_wheaten_terrier"}


def test_the_archives_are_unpacked_once_and_may_be_gone_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archives = pack(write(tmp_path / "dogs"), tmp_path / "archives")
    keys = [*KEYS, f"data.archive={archives}", f"data.root={tmp_path / 'data'}"]
    assert run(["data", *keys]) == 0
    assert sorted(path.name for path in archives.iterdir()) == ["annotation.tar", "images.tar", "lists.tar"]
    (table,) = (tmp_path / "data").glob("stanford_dogs-*/samples-*.csv")
    assert sample_table.read(table)["box_w"].tolist() == [18.0] * 10
    shutil.rmtree(archives)
    capsys.readouterr()
    assert run(["data", *keys]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("is up to date")] == [
        "unpack",
        "store",
        "splits",
    ]


def test_other_archives_in_the_same_place_are_unpacked_anew(tmp_path: Path) -> None:
    archives = pack(write(tmp_path / "dogs"), tmp_path / "archives")
    first = source(archives).inputs
    (archives / "annotation.tar").unlink()
    assert source(archives).inputs not in (first, None)


def test_pictures_of_other_archives_are_stored_anew_where_the_lists_are_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "dogs")
    archives = pack(folder, tmp_path / "archives")
    keys = [*KEYS, f"data.archive={archives}", f"data.root={tmp_path / 'data'}"]
    stored = []
    for shade, size_bytes in ((0, 20_000), (150, 40_000)):
        for path in (folder / "Images").rglob("*.jpg"):
            draw(path, shade)
            path.write_bytes(path.read_bytes().ljust(size_bytes, b"\0"))
        shutil.rmtree(archives)
        pack(folder, archives)
        assert run(["data", *keys]) == 0
        (pixels,) = (tmp_path / "data").glob("*/store-*/pixels.bin")
        stored.append(pixels.read_bytes())
    assert stored[0] != stored[1]


def test_what_is_damaged_or_missing_is_one_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "dogs")
    annotation = next((folder / "Annotation").rglob("*_4"))
    annotation.write_text("<annotation>")
    with pytest.raises(
        DataError, match=r"Annotation: no boxes can be read from n0\S+_4 \(1 in all\); put good"
    ):
        source(folder).read(folder)
    annotation.unlink()
    (folder / "test_list.mat").write_bytes(b"MATLAB")
    with pytest.raises(DataError, match=r"test_list\.mat: no MATLAB file with file_list, labels \(.+\); put"):
        source(folder).read(folder)
    cells = np.array([[f"{breed}/1.jpg"] for breed in BREEDS], dtype=object)
    savemat(folder / "test_list.mat", {"file_list": cells, "labels": [[1], [1]]})
    with pytest.raises(DataError, match="one label is given to several breeds: 1: Chihuahua, soft-coated"):
        source(folder).read(folder)
    savemat(folder / "test_list.mat", {"file_list": cells, "labels": [[1], [2], [2]]})
    with pytest.raises(DataError, match="not a list of pictures such as"):
        source(folder).read(folder)
    (folder / "test_list.mat").write_bytes((folder / "train_list.mat").read_bytes())
    with pytest.raises(DataError, match="pictures that are listed twice: n02085620-Chihuahua/n02085620_1"):
        source(folder).read(folder)
    (folder / "test_list.mat").unlink()
    with pytest.raises(
        DataError, match=r"no test_list\.mat in it; set data\.archive to the folder with Images"
    ):
        source(folder).read(folder)
    with pytest.raises(DataError, match="no such folder; set data.archive"):
        source(tmp_path / "nowhere").find_root(tmp_path)


def test_without_a_folder_the_sentence_says_where_it_is_to_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "data.source=stanford_dogs"]) == 2
    assert "vision.stanford.edu/aditya86/ImageNetDogs): set data.archive" in capsys.readouterr().err
