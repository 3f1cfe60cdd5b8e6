"""Stanford Cars from a small folder in torchvision's layout."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.cli.main import run
from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.data import sample_table
from pipeline.data.sources.stanford_cars import FIELDS, StanfordCars
from tests.helpers.own_pictures import draw, published

NAMES = ["Ram C/V Cargo Van Minivan 2012", "Audi 100 Wagon 1994"]
LABELS = {"train": [1, 2, 1, 2, 2, 1], "test": [2, 1]}


def annotate(path: Path, labels: list[int], **changed: object) -> None:
    """Write a list of pictures with boxes of 11 x 6 px."""
    kinds = [("fname", object), *((name, object) for name in FIELDS[1:])]
    rows = np.zeros((1, len(labels)), dtype=kinds)
    for number, label in enumerate(labels):
        values = {"fname": f"{number + 1:05}.jpg", "class": label, "bbox_x1": 3, "bbox_y1": 4}
        values |= {"bbox_x2": 13, "bbox_y2": 9, **changed}
        rows[0, number] = tuple(values[name] for name in FIELDS)
    savemat(path, {"annotations": rows})


def write(folder: Path) -> Path:
    """Six training and two test pictures of two cars; the folder."""
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([NAMES], dtype=object)})
    annotate(folder / "devkit" / "cars_train_annos.mat", LABELS["train"])
    annotate(folder / "cars_test_annos_withlabels.mat", LABELS["test"])
    for split, labels in LABELS.items():
        for number in range(len(labels)):
            draw(folder / f"cars_{split}" / f"{number + 1:05}.jpg")
    return folder


def source(folder: Path) -> StanfordCars:
    return StanfordCars(
        DataConfig.model_validate({"source": "stanford_cars", "archive": folder, "root": folder.parent / "d"})
    )


def test_every_image_has_its_class_split_and_box_as_torchvision_has_the_first_two(tmp_path: Path) -> None:
    from torchvision.datasets import StanfordCars as Torchvisions

    folder = write(tmp_path / "stanford_cars")
    made = source(tmp_path)
    root = made.find_root(tmp_path)
    table = made.read(root)
    sample_table.check(table, root)
    assert root == folder == source(folder).find_root(tmp_path)
    for split in LABELS:
        theirs = Torchvisions(tmp_path, split)
        ours = table[table["official"] == split]
        assert [
            (str(root / path), name) for path, name in zip(ours["path"], ours["class_name"], strict=True)
        ] == [
            (path, theirs.classes[label])
            for path, label in theirs._samples  # it has no public name for them
        ]
    assert table[["box_x", "box_y", "box_w", "box_h"]].drop_duplicates().to_numpy().tolist() == [
        [2, 3, 11, 6]
    ]


def test_the_list_of_the_test_may_lie_in_the_devkit(tmp_path: Path) -> None:
    folder = write(tmp_path / "cars")
    table = source(folder).read(folder)
    list_ = folder / "cars_test_annos_withlabels.mat"
    list_.rename(folder / "devkit" / list_.name)
    assert source(folder).read(folder).equals(table)


def test_from_its_folder_to_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated, predicted = published("stanford_cars", write(tmp_path / "cars"), tmp_path, capsys)
    assert evaluated["n"] == 2
    assert {entry["class"] for entry in predicted} == set(NAMES)


@pytest.mark.parametrize(
    "wrong",
    [{"class": 3}, {"class": 0}, {"class": "Audi"}, {"bbox_x2": 1}, {"fname": 7}, {"bbox_y1": [1, 2]}],
)
def test_an_annotation_that_means_nothing_is_one_sentence(tmp_path: Path, wrong: dict[str, object]) -> None:
    folder = write(tmp_path / "cars")
    annotate(folder / "devkit" / "cars_train_annos.mat", LABELS["train"], **wrong)
    with pytest.raises(
        DataError, match=r"cars_train_annos\.mat: an annotation is not a file's name, a class of 1 to 2 and"
    ):
        source(folder).read(folder)


def test_what_is_damaged_or_missing_is_one_sentence(tmp_path: Path) -> None:
    folder = write(tmp_path / "cars")
    annotate(folder / "devkit" / "cars_train_annos.mat", LABELS["train"], fname="../../up.jpg")
    with pytest.raises(DataError, match="paths that lead out of the folder: cars_train/../../up.jpg"):
        source(folder).read(folder)
    savemat(
        folder / "cars_test_annos_withlabels.mat", {"annotations": np.zeros(2, dtype=[("fname", object)])}
    )
    annotate(folder / "devkit" / "cars_train_annos.mat", LABELS["train"])
    with pytest.raises(DataError, match="no class, bbox_x1, bbox_y1, bbox_x2, bbox_y2 in its annotations"):
        source(folder).read(folder)
    (folder / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DataError, match=r"no cars_test_annos_withlabels\.mat in it; set data\.archive"):
        source(folder).read(folder)
    (folder / "devkit" / "cars_meta.mat").write_bytes(b"")
    with pytest.raises(DataError, match=r"cars_meta\.mat: no MATLAB file with class_names"):
        source(folder).read(folder)
    with pytest.raises(DataError, match=r"no devkit in it; set data\.archive to the folder stanford_cars"):
        source(folder / "cars_train").find_root(tmp_path)


def test_without_a_folder_the_sentence_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "data.source=stanford_cars"]) == 2
    assert (
        "its download is gone; set data.archive to a copy of the folder stanford_cars"
        in capsys.readouterr().err
    )
