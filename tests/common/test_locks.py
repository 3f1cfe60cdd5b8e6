import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.common import locks
from pipeline.common.errors import UserError
from pipeline.common.locks import Lock

HOLD = "import sys, time; from pathlib import Path; from pipeline.common.locks import Lock\n"
HOLD += "lock = Lock.free(Path(sys.argv[1])); print('up', flush=True); time.sleep(float(sys.argv[2]))"


def test_a_file_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    assert not locks.held(path)
    with subprocess.Popen([sys.executable, "-c", HOLD, path, "60"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        assert locks.held(path)
        assert Lock.free(path) is None
        began = time.monotonic()
        assert Lock.wait(path, at_most_s=0.3) is None
        assert time.monotonic() - began >= 0.3
        child.kill()
    assert not locks.held(path)
    lock = Lock.free(path)
    assert lock is not None
    assert Lock.free(path) is None  # nor twice by one process
    lock.close()
    assert Lock.free(path) is not None


def test_whoever_waits_gets_it_when_the_other_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock", "0.5"], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        assert Lock.wait(tmp_path / "lock", at_most_s=60) is not None
        assert child.wait() == 0


def test_a_lock_that_is_never_let_go_ends_the_wait_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Lock.hold(tmp_path / "lock")
    monkeypatch.setattr(locks, "QUIET_S", 0.1)
    monkeypatch.setattr(locks, "PATIENCE_S", 0.2)
    with pytest.raises(UserError, match="another process has held it .* run again"):
        Lock.hold(tmp_path / "lock")
    assert "waiting for another process" in capsys.readouterr().err
    other.close()
    assert Lock.hold(tmp_path / "lock") is not None


def test_a_lock_in_a_folder_that_cannot_be_is_an_error_and_no_wait(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(FileNotFoundError):
        Lock.free(tmp_path / "lock")


def test_a_disk_without_stable_inodes_still_gives_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    lock = Lock.free(tmp_path / "lock")
    assert lock is not None
    assert locks.held(tmp_path / "lock")
