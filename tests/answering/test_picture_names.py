"""Names of files, folders and patterns become picture files, in an order that one can count on."""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.answering.picture_names import expand
from pipeline.common.errors import DataError


def made(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def below(folder: Path, paths: Iterable[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_folder_is_walked_in_order_without_hidden_files_and_circles(tmp_path: Path) -> None:
    made(
        tmp_path, "b.jpg", "a/2.PNG", "a/1.webp", "a/x/1.tif", ".a.jpg", ".git/a.jpg", "notes.txt", "c d.jpeg"
    )
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert below(tmp_path, expand([tmp_path])) == ["a/1.webp", "a/2.PNG", "a/x/1.tif", "b.jpg", "c d.jpeg"]


def test_a_pattern_that_no_shell_has_expanded_is_expanded_and_a_file_of_such_a_name_is_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "b1.jpg", "a1.jpg", "a[1].jpg", "deep/er/c1.jpg", "deep/er/c2.png")
    monkeypatch.chdir(tmp_path)
    names = ["?1.jpg", "a[1].jpg", "**/c*", "none*.jpg"]
    assert list(map(str, expand(map(Path, names)))) == [
        *("a1.jpg", "b1.jpg"),
        "a[1].jpg",
        *("deep/er/c1.jpg", "deep/er/c2.png"),
        "none*.jpg",
    ]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\0"])
def test_standard_input_lists_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: bytes) -> None:
    made(tmp_path, "folder/1.jpg")
    names = [b"a b.jpg", b"\xff.jpg", os.fsencode(tmp_path / "folder")]
    if ending == b"\0":
        names.append(b"of two\nlines.jpg")
    listed = b"".join(name + ending for name in names)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(listed)))
    found = [os.fsencode(path) for path in expand([Path("first.jpg"), Path("-")])]
    assert found == [b"first.jpg", *names[:2], os.fsencode(tmp_path / "folder/1.jpg"), *names[3:]]


def test_a_folder_without_pictures_is_one_sentence_and_a_missing_file_stays(tmp_path: Path) -> None:
    made(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=rf"^{tmp_path}: a folder without pictures; name one that holds some"):
        expand([tmp_path])
    missing = [tmp_path / "missing.jpg", tmp_path / ("x" * 300)]
    assert expand(missing) == missing
