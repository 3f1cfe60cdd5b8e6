"""A stage's output: made by one process at a time, under a stamp that names what it made."""

import hashlib
import json
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pipeline.common import signals
from pipeline.common.errors import DataError, Stopped
from pipeline.common.locks import Lock
from pipeline.common.signals import raise_stopped
from pipeline.data import stages
from pipeline.data.stages import FolderRecord, Stage, Stamp

FILES = {"pixels.bin": "0123", "index.csv": "id\n1\n"}


def write(output: Path) -> None:
    for name, text in FILES.items():
        (output / name).write_text(text)


def stage(tmp: Path, make: Callable[[Path], Mapping[str, str] | None] = write, **inputs: str) -> Stage:
    return Stage("store", tmp / "data" / "store", {"texts": "1", **inputs}, make)


def entries(tmp: Path) -> set[str]:
    return {path.name for path in (tmp / "data").iterdir()}


def test_a_stamp_names_the_size_and_digest_of_each_file(tmp_path: Path) -> None:
    stage(tmp_path).run()
    stamp = json.loads((tmp_path / "data" / "store.stamp.json").read_text())
    assert stamp["made"] == {
        name: {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        for name, text in FILES.items()
    }
    assert entries(tmp_path) == {"store", "store.stamp.json", "prepare.lock"}


def write_with_checksum(output: Path) -> dict[str, str]:
    write(output)
    return {"pixels.bin": f"{zlib.crc32(FILES['pixels.bin'].encode()):08x}"}


def test_a_checksum_that_was_taken_while_writing_stands_in_the_stamp(tmp_path: Path) -> None:
    made = stage(tmp_path, write_with_checksum)
    made.run()
    stamp = json.loads((tmp_path / "data" / "store.stamp.json").read_text())
    assert stamp["made"] == {
        "pixels.bin": {"bytes": 4, "crc32": "a6669d7d"},
        "index.csv": {"bytes": 5, "sha256": hashlib.sha256(FILES["index.csv"].encode()).hexdigest()},
    }
    assert made.due(verify=True) is None
    (made.output / "pixels.bin").write_text("0124")
    assert made.due() is None
    assert made.due(verify=True) == "pixels.bin has other content than it was made with"


def test_what_is_as_it_was_made_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage(tmp_path).run()
    stage(tmp_path, make=lambda _: pytest.fail("it is up to date")).run(verify=True)
    assert capsys.readouterr().err.splitlines() == [f"store  {tmp_path}/data/store is up to date"]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("pixels.bin", "012", "pixels.bin has 3 bytes, and was made with 4"),
        ("index.csv", "id\n2\n", "index.csv has other content than it was made with"),
        ("pixels.bin", None, "pixels.bin is missing"),
    ],
)
def test_what_has_changed_is_made_anew_and_the_reason_is_said(
    tmp_path: Path, name: str, text: str | None, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(tmp_path).run()
    changed = tmp_path / "data" / "store" / name
    changed.unlink() if text is None else changed.write_text(text)
    stage(tmp_path).run()
    assert capsys.readouterr().err.splitlines() == [f"store  {tmp_path}/data/store is made anew: {why}"]
    assert {path.name: path.read_text() for path in changed.parent.iterdir()} == FILES


def test_other_bytes_of_the_same_number_are_seen_by_verify(tmp_path: Path) -> None:
    stage(tmp_path).run()
    (tmp_path / "data" / "store" / "pixels.bin").write_text("0124")
    assert stage(tmp_path).due() is None
    assert stage(tmp_path).due(verify=True) == "pixels.bin has other content than it was made with"


@pytest.mark.parametrize(
    ("stamp", "why"),
    [
        (None, "not finished"),
        ("", "not finished"),
        ("[1]", "not finished"),
        ('{"inputs": "other"}', "made from other inputs"),
        ('{"inputs": "DIGEST"}', "made by an earlier version"),
    ],
)
def test_an_output_without_its_stamp_is_due(tmp_path: Path, stamp: str | None, why: str) -> None:
    due = stage(tmp_path)
    due.run()
    path = tmp_path / "data" / "store.stamp.json"
    path.unlink() if stamp is None else path.write_text(stamp.replace("DIGEST", due.inputs_digest))
    assert due.due() == why


def test_a_stage_that_fails_leaves_the_earlier_output_with_its_stamp(tmp_path: Path) -> None:
    def fail(output: Path) -> None:
        (output / "pixels.bin").write_text("half")
        raise DataError("no picture")

    stage(tmp_path).run()
    with pytest.raises(DataError, match="no picture"):
        stage(tmp_path, fail, layout="other").run()
    assert stage(tmp_path).due(verify=True) is None
    assert entries(tmp_path) == {"store", "store.stamp.json", "prepare.lock"}


def test_a_kill_between_an_output_and_its_stamp_leaves_an_output_that_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the stamp of the earlier inputs would stand beside the output of the later ones."""

    def later(output: Path) -> None:
        (output / "pixels.bin").write_text("later")

    stage(tmp_path).run()
    with monkeypatch.context() as killed:
        killed.setattr(stages, "write_stamp", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path, later, texts="2").run()
    assert (tmp_path / "data" / "store" / "pixels.bin").read_text() == "later"
    assert stage(tmp_path).due() == "not finished"


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    made: list[float] = []

    def make(output: Path) -> None:
        made.append(time.monotonic())
        time.sleep(0.3)
        write(output)

    both = [threading.Thread(target=stage(tmp_path, make).run) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    assert len(made) == 1
    assert stage(tmp_path).due(verify=True) is None


def test_who_waits_says_for_whom_and_again_and_not_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "SAY_AGAIN_S", 0.1)
    monkeypatch.setattr(stages, "POLL_S", 0.1)
    with (
        stages.turn(tmp_path / "data", wait_minutes=1),
        pytest.raises(
            DataError, match=rf"process {os.getpid()} on .* has been preparing this data set for"
        ) as caught,
    ):
        stage(tmp_path).run(wait_minutes=0.5 / 60)
    assert "set distributed.data_timeout_minutes higher" in str(caught.value)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 1
    assert all(line.startswith(f"waiting for process {os.getpid()} on ") for line in lines)


def test_who_waits_ends_on_sigterm(tmp_path: Path) -> None:
    holder = Lock.free(tmp_path / "data" / stages.LOCK)
    assert holder is not None
    signal.signal(signal.SIGTERM, raise_stopped)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        stage(tmp_path).run(wait_minutes=1)
    with signals.deferred(), pytest.raises(Stopped, match="stopped by SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        stage(tmp_path).run(wait_minutes=1)
    holder.close()
    stage(tmp_path).run()


def test_a_folder_of_many_files_is_described_as_a_whole_and_left_to_the_user(tmp_path: Path) -> None:
    raw = Stage("unpack", tmp_path / "data" / "raw", {"md5": "1"}, write, kind=FolderRecord)
    raw.run()
    stamp = stages.read_stamp(raw.output)
    assert stamp == Stamp(raw.inputs_digest, "", FolderRecord(files=2, bytes=9))
    (raw.output / "pixels.bin").write_text("01")
    assert raw.due(verify=True) is None
    assert stages.changes(raw.output) == "2 files of 7 bytes, and it was made with 2 files of 9 bytes"


def test_a_file_is_an_output_too(tmp_path: Path) -> None:
    def make(output: Path) -> None:
        output.write_text("a")

    table = Stage("splits", tmp_path / "data" / "samples.csv", {}, make, is_folder=False)
    table.run()
    assert table.due() is None
    table.output.write_text("b")
    assert table.due() == "samples.csv has other content than it was made with"
