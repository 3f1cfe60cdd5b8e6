import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.cli.main import run
from pipeline.common.locks import Lock
from pipeline.config.load import load_config
from pipeline.data import prepare
from pipeline.data.sources.drawn_birds import dataset
from tests.helpers import processes, tiny


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of drawn birds in the layout of CUB's."""
    folder = tmp_path_factory.mktemp("archive")
    drawn = folder / "drawn"
    drawn.mkdir()
    dataset.write(drawn, species=4, images_per_species=8, train_per_species=5, long_side_px=64, seed=0)
    with tarfile.open(folder / "birds.tgz", "w:gz") as tar:
        for path in sorted(drawn.iterdir()):
            tar.add(path, path.name)
    return folder / "birds.tgz"


def arguments(archive: Path, root: Path, *more: str) -> list[str]:
    md5 = hashlib.md5(archive.read_bytes()).hexdigest() if archive.is_file() else "0" * 32
    fixed = [f"data.archive={archive}", f'data.archive_md5="{md5}"', f"data.root={root}"]
    return ["data", *fixed, "data.resize_px=40", "data.image_px=32", *more]


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "prepare.lock"
    }


def test_an_archive_becomes_a_store_and_a_table(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(archive, tmp_path)) == 0
    (path,) = tmp_path.glob("cub200-*/samples-val0.1-seed0.csv")
    table = pd.read_csv(path)
    assert table["split"].value_counts().to_dict() == {"train": 16, "val": 4, "test": 12}
    assert table["width"].between(20, 64).all()
    assert (table[["width", "height"]].max(axis=1) == 64).all()
    said = capsys.readouterr().err
    assert "greyscale" in said
    assert "32" in said.splitlines()[-1]


def test_what_is_up_to_date_is_skipped_and_only_what_changed_is_made(archive: Path, tmp_path: Path) -> None:
    assert run(arguments(archive, tmp_path)) == 0
    before = files_below(tmp_path)
    assert run(arguments(archive, tmp_path)) == 0
    assert files_below(tmp_path) == before
    assert run(arguments(archive, tmp_path, "seed=5", "data.resize=short_side")) == 0
    after = files_below(tmp_path)
    assert before.items() <= after.items()
    new = {name.partition("/")[2] for name in after.keys() - before.keys()}
    assert {"samples-val0.1-seed5.csv", "store-short_side40-packed/pixels.bin"} <= new
    assert not any(name.startswith("raw") for name in new)


def test_stores_of_several_sizes_share_a_table_that_stays_as_it_is(archive: Path, tmp_path: Path) -> None:
    assert run(arguments(archive, tmp_path)) == 0
    before = files_below(tmp_path)
    assert run(arguments(archive, tmp_path, "data.resize_px=48")) == 0
    after = files_below(tmp_path)
    assert before.items() <= after.items()
    assert {Path(name).parts[1] for name in after.keys() - before.keys()} == {
        "store-squash48-packed",
        "store-squash48-packed.stamp.json",
    }
    assert run(arguments(archive, tmp_path)) == 0
    assert files_below(tmp_path) == after


def test_an_unpacked_folder_is_used_where_it_is(archive: Path, tmp_path: Path) -> None:
    assert run(arguments(archive.parent / "drawn", tmp_path)) == 0
    assert not list(tmp_path.rglob("images.txt"))
    assert len(list(tmp_path.rglob("pixels.bin"))) == 1


def test_a_wrong_digest_names_both_and_leaves_nothing(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments(archive, tmp_path), 'data.archive_md5="' + "a" * 32 + '"']) == 2
    said = capsys.readouterr().err
    assert "a" * 32 in said
    assert hashlib.md5(archive.read_bytes()).hexdigest() in said
    assert files_below(tmp_path) == {}


def test_damage_to_the_unpacked_folder_keeps_the_table_that_was_good(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(archive, tmp_path)) == 0
    (store,) = tmp_path.rglob("pixels.bin")
    good = store.read_bytes()
    pictures = sorted(tmp_path.rglob("*.jpg"))[:2]
    for picture in pictures:
        picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    assert run(arguments(archive, tmp_path, "data.resize_px=44")) == 2
    said = capsys.readouterr().err
    assert all(picture.name in said for picture in pictures)
    assert "2 of 32 pictures do not decode in full" in said
    assert store.read_bytes() == good
    assert run(arguments(archive, tmp_path)) == 0


def test_a_missing_row_in_each_text_file_is_named_at_once(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(archive, tmp_path)) == 0
    (listed,) = tmp_path.rglob("images.txt")
    names = ["image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "classes.txt"]
    for name in names:
        text = (listed.parent / name).read_text().splitlines(keepends=True)
        (listed.parent / name).write_text("".join(text[:-1]))
    assert run(arguments(archive, tmp_path)) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in names)


def test_a_full_disk_is_one_sentence(
    archive: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(archive, small_disk, "data.resize_px=300")) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 1
    assert "free" in said
    assert not list(small_disk.rglob("store-*/pixels.bin"))


def test_an_archive_that_is_not_the_official_one_needs_its_digest(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", f"data.archive={archive}", f"data.root={tmp_path}"]) == 2
    assert "data.archive_md5" in capsys.readouterr().err


def test_folds_are_tables_of_their_own(birds: Path, tmp_path: Path) -> None:
    val: list[int] = []
    root = tiny.own_data(tmp_path)
    for fold in range(3):
        assert tiny.do("data", tmp_path, root, "data.folds=3", f"data.fold={fold}") == 0
        (path,) = tmp_path.glob(f"data/*/samples-fold{fold}of3-seed0.csv")
        table = pd.read_csv(path)
        val += table.loc[table["split"] == "val", "id"].tolist()
    assert sorted(val) == table.loc[table["official"] == "train", "id"].tolist()


@pytest.fixture
def own(archive: Path, tmp_path: Path) -> Path:
    """A folder of the user's own pictures."""
    shutil.copytree(archive.parent / "drawn", tmp_path / "own")
    return tmp_path / "own"


SMALL = ["train.epochs=1", "report.gallery=2", "report.pairs=1", "report.explained=2", "report.neighbours=0"]


def own_arguments(own: Path, verb: str = "data", *more: str) -> list[str]:
    """A verb on the user's folder, and on the tiny network."""
    words = tiny.arguments(verb, own.parent, f"data.root={own.parent / 'data'}", "data.source=cub200")
    return [*words, f"data.archive={own}", *SMALL, *more]


def pixels_of(own: Path) -> bytes:
    (path,) = own.parent.glob("data/*/store-*/pixels.bin")
    return path.read_bytes()


def replace_picture(own: Path) -> None:
    """Put one picture in the place of a larger one, filled up to the same number of bytes behind its end."""
    one, other = sorted(sorted(own.rglob("*.jpg"))[:2], key=lambda path: path.stat().st_size)
    other.write_bytes(one.read_bytes().ljust(other.stat().st_size, b"\0"))


def test_a_picture_replaced_in_a_folder_of_the_users_is_seen(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(own_arguments(own)) == 0
    before = pixels_of(own)
    replace_picture(own)
    capsys.readouterr()
    assert run(own_arguments(own)) == 0
    assert "is made anew: made from other inputs" in capsys.readouterr().err
    assert pixels_of(own) != before
    assert run(own_arguments(own)) == 0
    said = capsys.readouterr().err
    assert said.count("is up to date") == 2


def test_a_picture_cut_in_a_folder_of_the_users_is_named(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(own_arguments(own)) == 0
    before = pixels_of(own)
    cut = sorted(own.rglob("*.jpg"))[3]
    cut.write_bytes(cut.read_bytes()[:500])
    assert run(own_arguments(own)) == 2
    assert cut.name in capsys.readouterr().err
    assert pixels_of(own) == before


def test_what_was_prepared_from_a_folder_that_moved_away_trains_evaluates_and_reports(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(own_arguments(own)) == 0
    assert run(own_arguments(own, "train", "train.max_steps=1")) == 0
    moved = own.rename(own.parent / "moved")
    for verb in ("train", "eval", "report", "data"):
        assert run(own_arguments(own, verb)) == 0, capsys.readouterr().err
    assert "the data that were prepared from it are taken as they are" in capsys.readouterr().err
    before = files_below(own.parent / "data")
    assert run(own_arguments(moved)) == 0
    made = set(files_below(own.parent / "data").items()) - set(before.items())
    assert {Path(name).name for name, _ in made} == {"source.json"}
    for path in (own, moved):
        assert prepare.output_paths(load_config(None, own_arguments(path)[1:]))[0].is_file()


def test_prepared_data_that_were_copied_to_another_root_are_found(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(own_arguments(own)) == 0
    shutil.copytree(own.parent / "data", own.parent / "scratch")
    shutil.rmtree(own.parent / "data")
    own.rename(own.parent / "moved")
    root = f"data.root={own.parent / 'scratch'}"
    assert run(own_arguments(own, "train", root, "train.max_steps=1")) == 0
    capsys.readouterr()
    assert run(own_arguments(own.parent / "moved", "data", root)) == 0
    assert capsys.readouterr().err.count("is up to date") == 2


def test_damaged_data_whose_folder_is_gone_are_named_and_stay(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(own_arguments(own)) == 0
    own.rename(own.parent / "moved")
    (path,) = own.parent.glob("data/*/store-*/pixels.bin")
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    assert run(own_arguments(own)) == 0
    assert run(own_arguments(own, "data", "--verify")) == 2
    said = capsys.readouterr().err
    assert (
        "pixels.bin has other content than it was made with; bring the folder back and run `plumage data` with the same "
        "--config and keys" in said
    )
    assert path.is_file()


def test_data_that_the_first_version_prepared_from_a_folder_are_found_without_it(own: Path) -> None:
    assert run(own_arguments(own)) == 0
    (record,) = own.parent.glob("data/*/source.json")
    record.unlink()
    for stamp in record.parent.glob("*.stamp.json"):
        stamp.write_text(json.dumps({"inputs": json.loads(stamp.read_text())["inputs"]}))
    own.rename(own.parent / "moved")
    assert run(own_arguments(own, "train", "train.max_steps=1")) == 0
    assert run(own_arguments(own)) == 0


def test_a_folder_that_was_never_prepared_and_is_not_there_is_named(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(own_arguments(own / "nowhere")) == 2
    assert str(own / "nowhere") in capsys.readouterr().err


def test_two_at_once_make_everything_once_and_both_end_well(archive: Path, tmp_path: Path) -> None:
    assert processes.at_once(*[arguments(archive, tmp_path)] * 2) == [0, 0]
    assert run(arguments(archive, tmp_path, "--verify")) == 0
    names = {path.name for path in next(tmp_path.glob("cub200-*")).iterdir()}
    expected = {"raw", "store-squash40-packed", "samples-val0.1-seed0.csv"}
    assert names == {*expected, *(f"{name}.stamp.json" for name in expected), "prepare.lock"}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pixels.bin", lambda content: content[:-10]),
        ("pixels.bin", lambda _: b""),
        ("pixels.bin", None),
        ("index.csv", None),
        ("index.csv", lambda content: content + content.splitlines(keepends=True)[-1]),
        ("index.csv", lambda content: content[:-1]),
    ],
    ids=["short", "empty", "no pixels", "no index", "a row twice", "cut index"],
)
def test_a_damaged_store_is_refused_by_train_and_made_anew_by_data(
    birds: Path, tmp_path: Path, name: str, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny.own_data(tmp_path)
    (path,) = tmp_path.glob(f"data/*/store-squash40-packed/{name}")
    good = path.read_bytes()
    path.unlink() if change is None else path.write_bytes(change(good))
    assert tiny.do("train", tmp_path, root) == 2
    said = capsys.readouterr().err
    assert f"has changed since it was made: {name}" in said
    assert "run `plumage data` with the same --config and keys" in said
    assert tiny.do("data", tmp_path, root) == 0
    assert f"is made anew: {name}" in capsys.readouterr().err
    assert path.read_bytes() == good


def test_verify_makes_anew_what_has_other_bytes_of_the_same_number(birds: Path, tmp_path: Path) -> None:
    root = tiny.own_data(tmp_path)
    (path,) = tmp_path.glob("data/*/store-squash40-packed/pixels.bin")
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2] + b"\0" * (len(good) - len(good) // 2))
    assert tiny.do("data", tmp_path, root) == 0
    assert path.read_bytes() != good
    assert tiny.do("data", tmp_path, root, "--verify") == 0
    assert path.read_bytes() == good


def test_verify_tells_of_a_changed_unpacked_folder_and_leaves_it(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(archive, tmp_path)) == 0
    (picture, *_) = sorted(tmp_path.rglob("*.jpg"))
    picture.write_bytes(picture.read_bytes() + b"\0")
    capsys.readouterr()
    assert run(arguments(archive, tmp_path, "--verify")) == 0
    assert (
        "unless you changed it yourself, rename it and run `plumage data` with the same --config and keys"
        in capsys.readouterr().err
    )
    assert picture.read_bytes()[-1] == 0


def test_a_table_of_other_texts_than_the_store_is_refused(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two stores share the table: where the texts have changed since, labels could belong to other pictures."""
    root = tiny.own_data(tmp_path)
    (boxes,) = tmp_path.glob("data/*/raw/**/bounding_boxes.txt")
    boxes.write_text(boxes.read_text() + "\n")
    assert tiny.do("data", tmp_path, root, "data.resize_px=48") == 0
    assert tiny.do("train", tmp_path, root) == 2
    assert "made from another state of the source than samples-val0.1-seed0.csv" in capsys.readouterr().err
    assert tiny.do("data", tmp_path, root) == 0
    assert tiny.do("train", tmp_path, root, "train.max_steps=1") == 0


def test_data_of_the_first_version_are_read_as_they_are_and_made_anew_once(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny.own_data(tmp_path)
    for stamp in tmp_path.glob("data/*/*.stamp.json"):
        stamp.write_text(json.dumps({"inputs": json.loads(stamp.read_text())["inputs"]}))
    assert tiny.do("train", tmp_path, root, "train.max_steps=1") == 0
    assert tiny.do("data", tmp_path, root) == 0
    said = capsys.readouterr().err
    assert said.count("is made anew: made by an earlier version") == 2
    assert "raw is up to date" in said
    assert tiny.do("data", tmp_path, root) == 0
    assert capsys.readouterr().err.count("is up to date") == 3


def relist(own: Path, flags: str | None = None, classes: str | None = None) -> None:
    """Write flags (1 for training) or the class of each image anew, a letter an image."""
    root = own / "CUB_200_2011"
    for name, values in (("train_test_split.txt", flags), ("image_class_labels.txt", classes)):
        if values is not None:
            text = "".join(f"{number} {value}\n" for number, value in enumerate(values, 1))
            (root / name).write_text(text)


def test_a_class_of_one_training_image_keeps_it_and_is_named(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relist(own, flags="1" * 5 + "0" * 3 + "1" * 5 + "0" * 3 + "1" + "0" * 7 + "0" * 8)
    names = sorted(path.name for path in (own / "CUB_200_2011/images").iterdir())
    for held_out in ("data.val_fraction=0.1", "data.val_images=4", "data.folds=2"):
        assert run(own_arguments(own, "data", held_out)) == 0
        said = capsys.readouterr().err
        assert f"no training image of {names[3]} (1 in all)" in said
        assert f"no validation image of {names[2]}, {names[3]} (2 in all)" in said
    assert run(own_arguments(own, "train")) == 0
    assert f"no training image of {names[3]} (1 in all)" in capsys.readouterr().err


def test_without_test_images_data_says_what_to_do(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relist(own, flags="1" * 32)
    assert run(own_arguments(own)) == 0
    assert "no test image at all; set eval.split=val" in capsys.readouterr().err
    assert run(own_arguments(own, "data", "data.val_fraction=0")) == 0
    assert "no test image at all; hold some out with data.val_fraction" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flags": "0" * 32}, "all images are for the test; list some of each class for training"),
        ({"classes": "1" * 32}, "all images are of one class"),
    ],
)
def test_a_set_that_teaches_nothing_is_refused(
    own: Path, changes: dict[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    relist(own, **changes)
    assert run(own_arguments(own)) == 2
    assert words in capsys.readouterr().err


def test_boxes_outside_their_pictures_are_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = own / "CUB_200_2011" / "bounding_boxes.txt"
    _, *rest = boxes.read_text().splitlines(keepends=True)
    boxes.write_text("1 60.0 5.0 30.0 10.0\n" + "".join(rest))
    assert run(own_arguments(own)) == 0
    assert "the boxes of image ids 1 (1 in all) lie outside their pictures" in capsys.readouterr().err


def test_an_up_to_date_root_is_read_where_nothing_can_be_written(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny.own_data(tmp_path)
    monkeypatch.setattr(Lock, "free", lambda _: pytest.fail("no lock is needed"))
    assert tiny.do("data", tmp_path, root) == 0


def test_fractions_that_differ_have_tables_of_their_own(tmp_path: Path) -> None:
    names = {
        prepare.output_paths(tiny.config(tmp_path, f"data.val_fraction={share}"))[0].name
        for share in (0.1, 0.12345678, 0.12345679)
    }
    assert names == {
        "samples-val0.1-seed0.csv",
        "samples-val0.12345678-seed0.csv",
        "samples-val0.12345679-seed0.csv",
    }
