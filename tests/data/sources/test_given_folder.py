"""A folder of the user's keeps its prepared data when it is moved, renamed or not there."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.sources import given_folder
from pipeline.data.sources.drawn_birds import dataset
from tests.helpers.own_pictures import class_folders

TEXT = "images.txt"


def folder(tmp: Path, name: str, text: str = "1 a.jpg") -> Path:
    path = tmp / name
    path.mkdir()
    (path / TEXT).write_text(text)
    return path


def find(tmp: Path, given: Path) -> str | None:
    def content() -> str:
        if not (given / TEXT).is_file():
            raise DataError(f"{given}: missing")
        return files.digest_of_file(given / TEXT)

    return given_folder.find(tmp / "data", "cub200", given, content)


def prepared(tmp: Path, given: Path, name: str) -> str:
    path = tmp / "data" / name
    path.mkdir(parents=True, exist_ok=True)
    content = files.digest_of_file(given / TEXT)
    given_folder.remember(path, given, content, lambda: content)
    return name


def test_a_folder_that_is_gone_is_found_by_its_path(tmp_path: Path) -> None:
    given = folder(tmp_path, "own")
    name = prepared(tmp_path, given, "cub200-1")
    assert find(tmp_path, given) == name
    given.rename(tmp_path / "elsewhere")
    assert find(tmp_path, given) == name
    given.mkdir()  # a place where a disk is not mounted
    assert find(tmp_path, given) == name


def test_a_folder_whose_files_changed_keeps_its_name(tmp_path: Path) -> None:
    given = folder(tmp_path, "own")
    name = prepared(tmp_path, given, "cub200-1")
    (given / TEXT).write_text("2 b.jpg")
    assert find(tmp_path, given) == name


def test_a_moved_folder_is_found_by_its_content_and_by_both_paths_from_then_on(tmp_path: Path) -> None:
    given, moved = folder(tmp_path, "own"), tmp_path / "moved"
    name = prepared(tmp_path, given, "cub200-1")
    given.rename(moved)
    assert find(tmp_path, moved) == name
    prepared(tmp_path, moved, name)
    assert find(tmp_path, moved) == find(tmp_path, given) == name
    moved.rename(tmp_path / "third")
    assert find(tmp_path, moved) == find(tmp_path, given) == find(tmp_path, tmp_path / "third") == name


def test_a_large_folder_is_digested_once_and_again_where_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it is listed, and each picture asked for its size: minutes, on a network file system."""
    calls, digest = [], given_folder.digest_of_content
    monkeypatch.setattr(
        given_folder, "digest_of_content", lambda *given: (calls.append(1), digest(*given))[1]
    )
    of_kind("folder", tmp_path / "one")
    config = config_of("folder", tmp_path / "one")
    for _ in range(2):
        prepare.prepare(config)
        assert len(calls) == 1
    paint(tmp_path / "one", 5)
    prepare.prepare(config)
    assert len(calls) == 2


def test_a_record_of_an_earlier_version_gets_a_state(tmp_path: Path) -> None:
    given = folder(tmp_path, "own")
    path = tmp_path / "data" / prepared(tmp_path, given, "cub200-1") / given_folder.RECORD
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: record[key] for key in ("folders", "content")}))
    assert find(tmp_path, given) == "cub200-1"
    prepared(tmp_path, given, "cub200-1")
    assert json.loads(path.read_text()) == record


def test_two_folders_that_are_there_have_data_of_their_own(tmp_path: Path) -> None:
    prepared(tmp_path, folder(tmp_path, "own"), "cub200-1")
    copy = folder(tmp_path, "copy")
    assert find(tmp_path, copy) is None  # pictures may differ where the lists are the same
    assert prepared(tmp_path, copy, "cub200-2") == find(tmp_path, copy)
    assert find(tmp_path, tmp_path / "own") == "cub200-1"


def test_another_folder_at_a_path_of_old_has_data_of_its_own(tmp_path: Path) -> None:
    given = folder(tmp_path, "own")
    first = prepared(tmp_path, given, given_folder.first_name(tmp_path / "data", "cub200", given))
    given.rename(tmp_path / "moved")
    prepared(tmp_path, tmp_path / "moved", first)
    other = folder(tmp_path, "own", text="3 c.jpg")
    assert find(tmp_path, other) is None
    second = given_folder.first_name(tmp_path / "data", "cub200", other)
    assert second == f"{first}-2"
    assert prepared(tmp_path, other, second) == find(tmp_path, other)
    assert find(tmp_path, tmp_path / "moved") == first


def test_data_of_the_first_version_are_found_by_the_digest_of_the_path(tmp_path: Path) -> None:
    given = tmp_path / "own"
    name = given_folder.first_name(tmp_path / "data", "cub200", given)
    assert find(tmp_path, given) is None
    (tmp_path / "data" / name).mkdir(parents=True)
    assert find(tmp_path, given) == name


@pytest.mark.parametrize("record", ["", "[]", '{"folders": [], "content": ""}', "{", '{"folders": 1}'])
def test_a_damaged_record_is_none(tmp_path: Path, record: str) -> None:
    given = folder(tmp_path, "own")
    prepared(tmp_path, given, "cub200-1")
    (tmp_path / "data" / "cub200-1" / given_folder.RECORD).write_text(record)
    assert find(tmp_path, given) is None


def test_a_record_is_written_once(tmp_path: Path) -> None:
    given = folder(tmp_path, "own")
    path = tmp_path / "data" / prepared(tmp_path, given, "cub200-1") / given_folder.RECORD
    before = path.stat().st_mtime_ns
    prepared(tmp_path, given, "cub200-1")
    assert path.stat().st_mtime_ns == before
    assert json.loads(path.read_text())["folders"] == [str(given.resolve())]


def of_kind(kind: str, folder: Path) -> None:
    """Write a data set of a user's own into a folder."""
    if kind == "cub200":
        folder.mkdir()
        dataset.write(folder, species=2, images_per_species=4, train_per_species=3, long_side_px=32, seed=0)
        return
    class_folders(folder, ["crow", "owl"])
    rows = [f"{name}/{number}.png,{name}" for name in ("crow", "owl") for number in range(5)]
    (folder / "birds.csv").write_text("\n".join(["path,label", *rows]) + "\n")


def config_of(kind: str, folder: Path) -> Config:
    key = {
        "folder": f"data.path={folder}",
        "csv": f"data.path={folder / 'birds.csv'}",
        "cub200": f"data.archive={folder}",
    }[kind]
    root = f"data.root={folder.parent / 'data'}"
    return load_config(None, [f"data.source={kind}", key, root, "data.resize_px=16", "data.image_px=16"])


def paint(folder: Path, seed: int) -> None:
    """Put noise in the place of each picture, or one grey (seed 0), and keep all names."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".png", ".jpg"):
            noise = (
                np.random.default_rng(seed).integers(0, 256, (20, 24, 3))
                if seed
                else np.full((20, 24, 3), 10)
            )
            path.write_bytes(cv2.imencode(path.suffix, noise.astype(np.uint8))[1].tobytes())


@pytest.mark.parametrize("kind", ["folder", "csv", "cub200"])
def test_other_pictures_of_the_same_names_do_not_take_the_data_of_a_folder_that_is_gone(
    kind: str, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    of_kind(kind, one)
    shutil.copytree(one, other)
    paint(one, 0)
    paint(other, 5)
    grey = prepare.prepare(config_of(kind, one)).store[0].copy()
    one.rename(tmp_path / "away")
    noise = prepare.prepare(config_of(kind, other)).store[0].copy()
    assert np.array_equal(prepare.load(config_of(kind, one)).store[0], grey)
    assert np.array_equal(prepare.prepare(config_of(kind, one)).store[0], grey) and not np.array_equal(
        grey, noise
    )
    assert len(list((tmp_path / "data").glob("*/source.json"))) == 2


@pytest.mark.parametrize("kind", ["folder", "csv", "cub200"])
def test_a_copy_without_the_times_of_a_folder_that_is_gone_takes_its_data(kind: str, tmp_path: Path) -> None:
    one, copy = tmp_path / "one", tmp_path / "copy"
    of_kind(kind, one)
    prepare.prepare(config_of(kind, one))
    shutil.copytree(one, copy, copy_function=shutil.copyfile)
    shutil.rmtree(one)
    assert prepare.output_paths(config_of(kind, copy)) == prepare.output_paths(config_of(kind, one))
    prepare.load(config_of(kind, copy))
