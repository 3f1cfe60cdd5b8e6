"""What `plumage data` says where nothing validates."""

from pathlib import Path

import pytest

from tests.helpers import own_pictures
from tests.helpers.own_pictures import class_folders

KEPT = "training keeps its last epoch"


def said(
    tmp: Path, capsys: pytest.CaptureFixture[str], path: Path, *more: str, source: str = "folder"
) -> str:
    capsys.readouterr()
    assert own_pictures.do("data", tmp, source, path, *more) == 0
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("test_fraction", "least"), [(0.2, 3), (0.5, 4)])
def test_too_few_pictures_to_validate_are_said_with_a_number_that_holds(
    tmp_path: Path, test_fraction: float, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in range(2, 6):
        birds = class_folders(tmp_path / f"birds{count}", ["crow", "gull"], count)
        sentence = (
            "val none: each class has 1 image left for training, which data.val_fraction=0.1 never takes; "
            f"{KEPT}; give {least} images or more of each class, or set data.test_fraction=0"
        )
        found = said(tmp_path, capsys, birds, f"data.test_fraction={test_fraction}")
        assert (sentence in found) == ("val none" in found) == (count < least)
    birds = tmp_path / "birds2"
    assert f"{KEPT}; set data.test_fraction=0" in said(tmp_path, capsys, birds, "data.test_fraction=0.99")
    for key in ("data.test_fraction=0", "data.val_fraction=0"):
        assert "val none" not in said(tmp_path, capsys, birds, key)


def test_a_test_of_ones_own_and_one_training_image_of_each_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (1, 2):
        birds = tmp_path / f"birds{count}"
        class_folders(birds / "train", ["crow", "gull"], count)
        class_folders(birds / "test", ["crow", "gull"], 2)
        found = said(tmp_path, capsys, birds)
        assert (f"{KEPT}; give 2 training images or more of each class" in found) == (count == 1)
        assert ("val none" in found) == (count == 1)


def test_an_empty_fold_and_groups_that_cannot_be_parted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"], 4)
    folds = ("data.folds=6", "data.fold=5")
    assert f"val none: fold 5 of 6 is empty, as each class has too few images; {KEPT}; choose fewer" in said(
        tmp_path, capsys, birds, *folds
    )
    rows = [
        f"{name}/{number}.png,{name},{name}{number // 2}" for name in ("crow", "gull") for number in range(4)
    ]
    (birds / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    assert f"val none: no whole group could be held out; {KEPT}; give more groups of each class" in said(
        tmp_path, capsys, birds / "list.csv", source="csv"
    )


def test_a_refit_whose_validation_images_train_says_nothing_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"], 6)
    assert "val none" not in said(tmp_path, capsys, birds, "train.refit=elsewhere")
