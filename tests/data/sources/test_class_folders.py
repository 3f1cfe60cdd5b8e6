"""Source `folder`: what is taken of a folder, what is refused in a sentence, and the way to a model that answers."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipeline.common.errors import DataError
from pipeline.data import sample_table
from pipeline.data.sample_table import EITHER
from pipeline.data.sources.class_folders import ClassFolders
from tests.helpers import own_pictures
from tests.helpers.folders import digests
from tests.helpers.own_pictures import class_folders, draw


def read(folder: Path, **keys: object) -> pd.DataFrame:
    source = ClassFolders(own_pictures.config("folder", folder, **keys))
    return source.read(source.find_root(folder))


def test_a_folder_becomes_a_model_that_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["007", "1e5", "Möwe weiß", "NA", "nan", "true"]
    birds = class_folders(tmp_path / "my birds", names)
    (birds / "Thumbs.db").write_text("x")
    before = digests(birds)
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    said = capsys.readouterr().err
    assert "left out, for by their names they are no pictures: Thumbs.db (1 in all)" in said
    assert "the data set has none, so 6 images were drawn: 0.2 of each class (data.test_fraction)" in said
    for verb in ("train", "eval"):
        assert own_pictures.do(verb, tmp_path, "folder", birds) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 6
    assert own_pictures.do("predict", tmp_path, "folder", birds, str(birds / "007" / "0.png")) == 0
    answer = json.loads(capsys.readouterr().out)["predictions"][0]["classes"]
    assert {each["class"] for each in answer} < set(names)
    (table,) = (tmp_path / "data").glob("folder-*/samples-*.csv")
    samples = sample_table.read(table)
    assert sample_table.class_names(samples) == names
    assert (samples["official"] == EITHER).all()
    assert samples.groupby(["class_name", "split"]).size().unstack().to_dict("list") == {
        "test": [1] * 6,
        "train": [3] * 6,
        "val": [1] * 6,
    }
    report = (tmp_path / "runs" / "own" / "eval" / "test" / "report.html").read_text()
    assert "007" in report
    assert digests(birds) == before


def test_nothing_is_written_into_a_folder_of_the_users(tmp_path: Path) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"])
    for folder in (birds / "crow", birds / "gull", birds):
        folder.chmod(0o555)
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    with pytest.raises(DataError, match=r"data.root \(.*\) lies in it, and nothing is written"):
        read(birds, root=birds / "data")
    with pytest.raises(DataError, match="set data.root to a folder outside of it"):
        read(birds, root=birds)


def test_the_drawn_test_is_the_same_for_every_seed_and_another_share_has_a_table_of_its_own(
    tmp_path: Path,
) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"], count=10)
    for keys in (["seed=0"], ["seed=1"], ["data.test_fraction=0.4"], ["data.test_fraction=0"]):
        assert own_pictures.do("data", tmp_path, "folder", birds, *keys) == 0
    tests = {
        path.name: set(samples.loc[samples["split"] == "test", "path"])
        for path in (tmp_path / "data").glob("folder-*/samples-*.csv")
        for samples in [sample_table.read(path)]
    }
    assert tests["samples-val0.1-seed0.csv"] == tests["samples-val0.1-seed1.csv"]
    assert {name: len(paths) for name, paths in tests.items()} == {
        "samples-val0.1-seed0.csv": 4,
        "samples-val0.1-seed1.csv": 4,
        "samples-val0.1-test0.4-seed0.csv": 8,
        "samples-val0.1-test0.0-seed0.csv": 0,
    }


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", "test"], {"train": "train", "test": "test"}),
        (["Training", "valid", "TEST"], {"Training": "train", "valid": "val", "TEST": "test"}),
        (["train", "val"], {"train": EITHER, "val": "val"}),  # a test is drawn of train
        (["train"], {"train": EITHER}),
    ],
)
def test_folders_above_the_classes_are_splits(
    tmp_path: Path, splits: list[str], expected: dict[str, str]
) -> None:
    for split in splits:
        class_folders(tmp_path / "birds" / split, ["crow", "gull"], count=3)
    table = read(tmp_path / "birds")
    found = table.groupby(table["path"].str.split("/").str[0])["official"].unique().map(list).to_dict()
    assert found == {folder: [official] for folder, official in expected.items()}
    assert sample_table.class_names(table) == ["crow", "gull"]


def test_validation_images_of_the_data_sets_own_validate_and_a_test_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("train", 10), ("val", 3)):
        class_folders(tmp_path / "birds" / split, ["crow", "gull"], count)
    assert own_pictures.do("data", tmp_path, "folder", tmp_path / "birds") == 0
    assert "val  the 6 images of the data set's own; data.val_fraction is not used" in capsys.readouterr().err
    samples = sample_table.read(next((tmp_path / "data").glob("folder-*/samples-*.csv")))
    assert samples["split"].value_counts().to_dict() == {"train": 16, "val": 6, "test": 4}
    assert samples.loc[samples["split"] == "val", "path"].str.startswith("val/").all()
    assert own_pictures.do("data", tmp_path, "folder", tmp_path / "birds", "data.folds=2") == 2
    assert (
        "data.folds: the data set has validation images of its own; drop data.folds"
        in capsys.readouterr().err
    )


def test_classes_may_be_called_like_splits_and_names_have_any_letters(tmp_path: Path) -> None:
    long = "é" * 127
    birds = class_folders(tmp_path / "birds", ["train", "test", "two\nlines", ' "q", ; \\ ', long], count=2)
    draw(birds / "train" / f"{'x' * 251}.JPG")
    (birds / "linked").symlink_to(class_folders(tmp_path / "elsewhere", ["a"]) / "a")
    table = read(birds)
    assert sample_table.class_names(table) == [' "q", ; \\ ', "linked", "test", "train", "two\nlines", long]
    assert all((birds / path).is_file() for path in table["path"])
    table.assign(split="train", width=1, height=1, grey=0, file_bytes=1).to_csv(
        tmp_path / "t.csv", index=False
    )
    again = sample_table.read(tmp_path / "t.csv")
    assert again[["path", "class_name"]].equals(table[["path", "class_name"]])


def test_names_are_composed_so_that_a_model_knows_them_on_every_system(tmp_path: Path) -> None:
    birds = class_folders(tmp_path / "birds", ["Mo\u0308we", "crow"])
    assert sample_table.class_names(read(birds)) == ["M\u00f6we", "crow"]


def hidden(birds: Path) -> None:
    for path in (".git/x.png", "__MACOSX/crow/._1.png", "crow/.thumb.png", "crow/notes.txt", "crow/._0.png"):
        draw(birds / path)


def test_hidden_files_and_what_is_no_picture_by_name_are_left_out_and_counted(tmp_path: Path) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"])
    before = read(birds)
    hidden(birds)
    assert read(birds).equals(before)
    (remark,) = ClassFolders(own_pictures.config("folder", birds)).remarks(birds)
    assert remark.endswith(
        "they are no pictures: .git, __MACOSX, crow/._0.png, crow/.thumb.png, crow/notes.txt (5 in all)"
    )


def loop(birds: Path) -> None:
    (birds / "crow" / "again").symlink_to(birds)


def without_pictures(birds: Path) -> None:
    for path in birds.rglob("*.png"):
        path.rename(path.with_suffix(".txt"))


def bytes_name(birds: Path) -> None:
    draw(Path(os.fsdecode(os.fsencode(birds / "crow") + b"/\xff.png")))


def twin_splits(birds: Path) -> None:
    for split in ("train", "test"):
        class_folders(birds.parent / "new" / split, ["crow", "gull"])
    birds.rename(birds.parent / "old")
    (birds.parent / "new").rename(birds)
    (birds / "test" / "crow").rename(birds / "test" / "Crow")


def splits(train: list[str], test: list[str]) -> Callable[[Path], None]:
    def write(birds: Path) -> None:
        birds.rename(birds.parent / "old")
        class_folders(birds / "train", train)
        class_folders(birds / "test", test)

    return write


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a loop": (loop, r"lead back to a folder above them: crow/again \(1 in all\); take them out"),
    "no picture": (without_pictures, r"no picture in it, by the names of its files .*; check data.path"),
    "an empty class": (
        lambda birds: (birds / "owl").mkdir(),
        r"class folders without a picture: owl \(1 in all\); add pictures, or move",
    ),
    "a picture outside": (
        lambda birds: draw(birds / "1.png"),
        r"pictures outside of a class folder: 1.png \(1 in all\); move each into",
    ),
    "nested": (
        lambda birds: draw(birds / "crow" / "old" / "1.png"),
        r"pictures in folders below a class folder: crow/old \(1 in all\); move the pictures up .*data.source=csv",
    ),
    "case": (
        lambda birds: draw(birds / "Crow" / "1.png"),
        r"names differ only in case.*: Crow / crow \(1 in all\); give each class one name",
    ),
    "composition": (
        lambda birds: class_folders(birds, ["\u00e9", "e\u0301"]),
        r"names differ only in case.*; give each class one name",
    ),
    "case over splits": (
        twin_splits,
        r"names differ only in case.*: Crow / crow \(1 in all\); give each class",
    ),
    "two files of one name": (
        lambda birds: draw(birds / "crow" / "0.PNG"),
        r"two files of one name, but for case.*: crow/0.PNG / 0.png \(1 in all\); rename one",
    ),
    "a picture alone": (
        lambda birds: draw(birds / "owl" / "1.png"),
        r"one picture alone of owl \(1 in all\), so none is left to test \(data.test_fraction=0.2\); add pictures",
    ),
    "bytes": (bytes_name, r"names that are no UTF-8 .*: 'crow/.udcff.png' \(1 in all\); rename"),
    "a test without a class": (
        splits(["crow", "gull", "owl"], ["crow", "gull"]),
        r"test lacks classes that train has: owl \(1 in all\); put pictures of each into test, leave .*is drawn",
    ),
    "a class in the test alone": (
        splits(["crow", "gull"], ["crow", "gull", "owl"]),
        r"test has classes that train lacks: owl \(1 in all\); put pictures of each into train",
    ),
    "a class beside splits": (
        lambda birds: (splits(["crow", "gull"], ["crow", "gull"])(birds), draw(birds / "owl" / "1.png")),
        "the folder 'owl' stands beside the split folders 'test', 'train'; move it into train/, val/ or test/, or "
        "remove the level of the splits$",
    ),
    "no class folders in a split": (
        lambda birds: (class_folders(birds / "train", ["crow", "gull"]), draw(birds / "test" / "1.png")),
        r"pictures outside of a class folder: test/1.png \(1 in all\); move each",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_could_mean_two_things_is_refused_and_nothing_written(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, sentence = CASES[case]
    birds = class_folders(tmp_path / "birds", ["crow", "gull"])
    if case.startswith("no class folders"):
        birds.rename(tmp_path / "old")
    change(birds)
    with pytest.raises(DataError, match=f"(?s)^{birds}: .*{sentence}"):
        read(birds)
    assert own_pictures.do("data", tmp_path, "folder", birds) == 2
    assert not (tmp_path / "data").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_link_to_a_folder_above_the_given_one_leads_nowhere(tmp_path: Path) -> None:
    birds = class_folders(tmp_path / "above" / "birds", ["crow", "gull"])
    (tmp_path / "above" / "owl").mkdir()
    (birds / "crow" / "up").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"links that lead back to a folder above them: crow/up \(1 in all\)"):
        read(birds)


def test_a_folder_beside_the_splits_is_named_once(tmp_path: Path) -> None:
    for split in ("train", "test", "dev"):
        class_folders(tmp_path / "birds" / split, ["crow", "gull"])
    with pytest.raises(DataError) as caught:
        read(tmp_path / "birds")
    (sentence,) = str(caught.value).splitlines()
    assert "the folder 'dev' stands beside the split folders 'test', 'train'; move it into" in sentence


def test_several_folders_beside_one_split(tmp_path: Path) -> None:
    class_folders(tmp_path / "birds" / "train", ["crow", "gull"])
    class_folders(tmp_path / "birds" / "dev", ["crow", "gull"])
    class_folders(tmp_path / "birds" / "holdout", ["crow", "gull"])
    with pytest.raises(
        DataError,
        match=r"the folders 'dev', 'holdout' \(2 in all\) stand beside the split folder 'train'; move them into train/",
    ):
        read(tmp_path / "birds")


def test_one_class_alone_and_a_folder_too_many(tmp_path: Path) -> None:
    birds = class_folders(tmp_path / "birds", ["crow"])
    with pytest.raises(DataError, match="all images are of one class, 'crow';"):
        read(birds)
    class_folders(tmp_path / "unpacked" / "birds", ["crow", "gull"])
    with pytest.raises(DataError, match=f"set data.path={tmp_path}/unpacked/birds$"):
        read(tmp_path / "unpacked")


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="birds: no such folder; set data.path to the folder"):
        read(tmp_path / "birds")
    (tmp_path / "birds").write_text("x")
    with pytest.raises(DataError, match="birds: a file, and no folder; set data.path"):
        read(tmp_path / "birds")


def test_all_pictures_that_cannot_be_read_are_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"])
    (birds / "crow" / "broken.jpg").write_text("x")
    (birds / "gull" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert own_pictures.do("data", tmp_path, "folder", birds) == 2
    said = capsys.readouterr().err
    assert "2 of 12 pictures do not decode in full" in said
    assert "crow/broken.jpg: not a picture" in said
    assert "gull/gone.png: missing" in said


def test_prepared_data_serve_while_the_folder_is_away_and_where_it_is_moved(tmp_path: Path) -> None:
    birds, moved = class_folders(tmp_path / "birds", ["crow", "gull"]), tmp_path / "moved"
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    birds.rename(moved)
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    assert own_pictures.do("data", tmp_path, "folder", moved) == 0
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_a_picture_that_is_added_is_seen(tmp_path: Path) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"])
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    draw(birds / "gull" / "new.png")
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    (table,) = (tmp_path / "data").glob("folder-*/samples-*seed0.csv")
    assert "gull/new.png" in set(sample_table.read(table)["path"])
