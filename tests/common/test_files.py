"""Files appear whole or not at all, and stamps tell when a stage is done."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.common import files
from pipeline.common.errors import DataError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_in_mid_write(code: str) -> None:
    """Run Python code that prints "written", and kill it there."""
    code = f"from pathlib import Path\nfrom pipeline.common import files\nimport time\n{code}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        child.kill()
    assert child.returncode < 0


def test_a_replaced_file_has_the_new_content_and_no_neighbour(tmp_path: Path) -> None:
    path = tmp_path / "new" / "birds.csv"
    for text in ("first", "second"):
        with files.replacing(path) as part:
            part.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert names(path.parent) == ["birds.csv"]


def test_an_error_while_writing_keeps_the_old_file_and_passes_on(tmp_path: Path) -> None:
    path = tmp_path / "birds.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="lights out"), files.replacing(path) as part:
        part.write_text("hal")
        raise RuntimeError("lights out")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["birds.csv"]


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "birds.csv"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), files.replacing(path):
        pass
    assert path.read_text() == "old"


def test_a_kill_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "birds.csv"
    path.write_text("old")
    killed_in_mid_write(
        f"with files.replacing(Path({str(path)!r})) as part:\n"
        "    part.write_text('hal'); print('written', flush=True); time.sleep(60)"
    )
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert path.read_text() == "new"


def test_content_is_synced_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "birds.csv", []
    monkeypatch.setattr(files, "sync", lambda place: synced.append((place, path.exists())))
    with files.replacing(path) as part:
        part.write_text("new")
    assert synced == [(part, False), (tmp_path, True)]


def test_a_replaced_folder_holds_only_the_new_files(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    for name in ("first", "second"):
        with files.replacing_folder(folder) as part:
            (part / name).write_text(name)
        assert names(folder) == [name]
    assert names(tmp_path) == ["raw"]


def test_an_error_while_filling_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(RuntimeError, match="lights out"), files.replacing_folder(folder) as part:
        (part / "new").write_text("hal")
        raise RuntimeError("lights out")
    assert names(tmp_path) == ["raw"]
    assert names(folder) == ["old"]


def test_a_kill_while_filling_keeps_the_old_folder_and_the_next_attempt_starts_empty(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "old").write_text("old")
    killed_in_mid_write(
        f"with files.replacing_folder(Path({str(folder)!r})) as part:\n"
        "    (part / 'hal').write_text('f'); print('written', flush=True); time.sleep(60)"
    )
    assert names(folder) == ["old"]
    with files.replacing_folder(folder) as part:
        assert names(part) == []
        (part / "new").write_text("new")
    assert names(tmp_path) == ["raw"]
    assert names(folder) == ["new"]


def test_a_kill_between_the_two_renames_is_mended_by_the_next_attempt(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "old").write_text("old")
    killed_in_mid_write(
        "Path.replace = lambda old, new, move=Path.replace: (\n"
        "    (print('written', flush=True), time.sleep(60)) if old.suffix == '.part' else move(old, new))\n"
        f"with files.replacing_folder(Path({str(folder)!r})): pass"
    )
    assert not folder.exists()
    with pytest.raises(RuntimeError), files.replacing_folder(folder):
        raise RuntimeError("lights out")
    assert names(tmp_path) == ["raw"]
    assert names(folder) == ["old"]


@pytest.mark.parametrize("writing", [files.replacing, files.replacing_folder])
def test_two_writers_of_one_path_do_not_meet_and_the_last_to_end_wins(writing: Any, tmp_path: Path) -> None:
    path = tmp_path / "store"

    def fill(part: Path, text: str) -> None:
        (part / "birds" if part.is_dir() else part).write_text(text)

    with writing(path) as first:
        fill(first, "first")
        with writing(path) as second:
            assert second != first
            fill(second, "second")
        assert first.exists()
        fill(first, "first")
    assert (path / "birds" if path.is_dir() else path).read_text() == "first"
    assert names(tmp_path) == ["store"]


def test_what_a_killed_writer_left_goes_with_the_next_one_and_what_a_living_one_writes_stays(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "birds.csv", tmp_path / "birds.csv.deadbeef.lock.csv"
    other.touch()
    killed_in_mid_write(
        f"with files.replacing(Path({str(path)!r})) as part:\n"
        "    part.write_text('hal'); print('written', flush=True); time.sleep(60)"
    )
    left = set(names(tmp_path)) - {other.name}
    assert {name.rpartition(".")[2] for name in left} == {"lock", "part"}
    with files.replacing(path) as living:
        living.write_text("new")
        assert not left & set(names(tmp_path))
        files.write_text(path, "another")
        assert living.read_text() == "new"
    assert names(tmp_path) == [path.name, other.name]


def test_two_processes_that_replace_one_folder_again_and_again_leave_a_whole_one(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.common import files\n"
        f"for number in range(40):\n    with files.replacing_folder(Path({str(tmp_path / 'raw')!r})) as part:\n"
        "        for name in 'abc': (part / name).write_text(sys.argv[1])"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, text]) for text in ("first", "second")]
    assert [process.wait() for process in processes] == [0, 0]
    assert names(tmp_path) == ["raw"]
    assert len({(tmp_path / "raw" / name).read_text() for name in "abc"}) == 1


def test_an_error_of_the_cleaning_does_not_hide_the_one_that_ended_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(RuntimeError, match="lights out"), files.replacing(tmp_path / "birds.csv"):
        monkeypatch.setattr(Path, "unlink", read_only)
        raise RuntimeError("lights out")


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_the_digest_of_a_file_longer_than_a_chunk_is_that_of_hashlib(tmp_path: Path, algorithm: str) -> None:
    content = os.urandom(files.CHUNK_BYTES + 17)
    (tmp_path / "file").write_bytes(content)
    assert files.digest_of_file(tmp_path / "file", algorithm) == hashlib.new(algorithm, content).hexdigest()


def test_the_checksum_of_a_file_longer_than_a_chunk_is_that_of_zlib(tmp_path: Path) -> None:
    content = os.urandom(files.CHUNK_BYTES + 17)
    (tmp_path / "file").write_bytes(content)
    assert files.crc32_of_file(tmp_path / "file") == f"{zlib.crc32(content):08x}"


def test_the_digest_of_a_value_depends_on_content_and_not_on_the_order_of_keys() -> None:
    one = files.digest_of({"a": 1, "b": [True, None, "ü"]})
    assert one == "870a7dfeba1f70d8443d95179d4643e4004d9071cbbe4845b5221e93de1b0e4f"
    assert files.digest_of({"b": [True, None, "ü"], "a": 1}) == one
    assert files.digest_of({"a": 1, "b": [True, "ü", None]}) != one
    assert files.digest_of({"a": "1", "b": [True, None, "ü"]}) != one


@dataclass(frozen=True)
class Bird:
    name: str
    eggs: int = 1


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"name": "Jay", "eggs": ', "Invalid JSON: EOF while parsing a value at line 1 column 24"),
        (b"", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b"[]", "Input should be an object"),
        (b"null", "Input should be an object"),
        (b'{"eggs": 1}', "name: Field required"),
        (b'{"name": "Jay", "eggs": "4"}', "eggs: Input should be a valid integer"),
        (b'{"name": null}', "name: Input should be a valid string"),
        (b"[" * 100_000, "Invalid JSON: recursion limit exceeded at line 1 column 202"),
        (b'{"name": "\\ud800"}', "Invalid JSON: unexpected end of hex escape at line 1 column 17"),
        (b'{"name": "\xff"}', "Invalid JSON: invalid unicode code point at line 1 column 11"),
    ],
)
def test_a_json_file_of_another_content_is_named_with_what_to_do(
    content: bytes, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "bird.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        files.read_json(path, Bird)
    assert str(refused.value) == f"{path}: damaged ({fault}); restore it from a copy, or fix it in an editor"
    with pytest.raises(DataError, match=r"; run `eval` again$"):
        files.read_json(path, Bird, "run `eval` again")


def test_a_json_file_of_a_later_version_is_read_without_the_fields_that_are_not_known(tmp_path: Path) -> None:
    files.write_json(tmp_path / "bird.json", {"name": "Jay", "eggs": 4, "nest": {"height_m": 3}})
    assert files.read_json(tmp_path / "bird.json", Bird) == Bird("Jay", 4)


def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "birds.txt"
    path.write_bytes("Häher\n".encode() + b"H\xe4her\n")
    with pytest.raises(DataError, match=r"birds\.txt, line 2: not UTF-8 text; take a copy$"):
        files.read_text(path, "take a copy")
    path.write_text("Häher\r\n", encoding="utf-8", newline="")
    assert files.read_text(path) == "Häher\r\n"


def test_json_is_written_as_it_reads_for_people_and_programs(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"name": "Häher", "n": 3})
    assert path.read_text(encoding="utf-8") == '{\n  "name": "Häher",\n  "n": 3\n}\n'
    assert files.read_json(path, dict[str, Any]) == {"name": "Häher", "n": 3}


def test_free_space_is_required_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    files.require_free(tmp_path / "data", 3 << 20, "the store")
    with pytest.raises(DataError, match=r"the store needs 3\.0 MiB and 3\.0 MiB are free; .* data\.root"):
        files.require_free(tmp_path / "data", (3 << 20) + 1, "the store")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (1_150_585_339, "1.1 GiB"),
        (3 << 40, "3.0 TiB"),
    ],
)
def test_a_size_in_words(size: int, words: str) -> None:
    assert files.size_in_words(size) == words
