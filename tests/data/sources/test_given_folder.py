"""A folder of the user's keeps its prepared data when it is moved, renamed or not there."""

import json
from pathlib import Path

import pytest

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.data.sources import given_folder

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
    given_folder.remember(path, given, files.digest_of_file(given / TEXT))
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
