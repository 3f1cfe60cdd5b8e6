import subprocess
import sys
import time
from pathlib import Path

from pipeline.common import locks
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
