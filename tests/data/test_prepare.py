import hashlib
import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from pipeline.cli.main import run
from pipeline.data.sources.drawn_birds import dataset
from tests.helpers import tiny


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


def test_the_stamp_holds_only_a_digest(birds: Path) -> None:
    stamp = next(birds.rglob("store-*.stamp.json"))
    assert json.loads(stamp.read_text()).keys() == {"inputs"}
