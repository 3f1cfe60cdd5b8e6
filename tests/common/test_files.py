"""Files appear whole or not at all, and stamps tell when a stage is done."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

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
    (tmp_path / "raw.old").mkdir()
    (tmp_path / "raw.old" / "old").write_text("old")
    with pytest.raises(RuntimeError), files.replacing_folder(folder):
        raise RuntimeError("lights out")
    assert names(tmp_path) == ["raw"]
    assert names(folder) == ["old"]


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_the_digest_of_a_file_longer_than_a_chunk_is_that_of_hashlib(tmp_path: Path, algorithm: str) -> None:
    content = os.urandom(files.CHUNK_BYTES + 17)
    (tmp_path / "file").write_bytes(content)
    assert files.digest_of_file(tmp_path / "file", algorithm) == hashlib.new(algorithm, content).hexdigest()


def test_the_digest_of_a_value_depends_on_content_and_not_on_the_order_of_keys() -> None:
    one = files.digest_of({"a": 1, "b": [True, None, "ü"]})
    assert one == "870a7dfeba1f70d8443d95179d4643e4004d9071cbbe4845b5221e93de1b0e4f"
    assert files.digest_of({"b": [True, None, "ü"], "a": 1}) == one
    assert files.digest_of({"a": 1, "b": [True, "ü", None]}) != one
    assert files.digest_of({"a": "1", "b": [True, None, "ü"]}) != one


def test_a_stamp_holds_for_the_same_inputs_only(tmp_path: Path) -> None:
    path = tmp_path / "raw.stamp.json"
    assert not files.stamped(path, {"md5": "a"})
    files.stamp(path, {"md5": "a", "px": 512})
    assert files.stamped(path, {"px": 512, "md5": "a"})
    assert not files.stamped(path, {"md5": "a", "px": 511})
    assert not files.stamped(path, {"md5": "a"})


def test_a_broken_json_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "raw.stamp.json"
    path.write_text('{"inputs": ')
    with pytest.raises(DataError, match=r"raw\.stamp\.json: not JSON .* delete it and run again"):
        files.stamped(path, {})


def test_json_is_written_as_it_reads_for_people_and_programs(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"name": "Häher", "n": 3})
    assert path.read_text(encoding="utf-8") == '{\n  "name": "Häher",\n  "n": 3\n}\n'
    assert files.read_json(path) == {"name": "Häher", "n": 3}


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
