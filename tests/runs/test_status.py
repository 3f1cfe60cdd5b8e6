import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.errors import CheckpointError, Stopped, UserError
from pipeline.runs.directory import RunDirectory
from tests.helpers import tiny


def test_how_a_block_ends_is_written_down(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).read_status() is None
    with RunDirectory(tmp_path).running():
        now = RunDirectory(tmp_path).read_status()
        assert now is not None
        assert (now.state, now.pid, now.attempts) == ("running", os.getpid(), 1)
    ends = {
        "stopped": Stopped("stopped by SIGTERM at step 4"),
        "failed": UserError("step 3: the loss is nan"),
    }
    for attempts, (state, error) in enumerate(ends.items(), start=2):
        with pytest.raises(type(error)), RunDirectory(tmp_path).running():
            raise error
        ended = RunDirectory(tmp_path).read_status()
        assert ended is not None
        assert (ended.state, ended.why, ended.attempts) == (state, str(error), attempts)
        assert ended.started == now.started
    with RunDirectory(tmp_path).running():
        pass
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_a_process_that_was_killed_is_not_running(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from pipeline.runs.directory import RunDirectory\n"
    code += (
        "with RunDirectory(Path(sys.argv[1])).running():\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        while_it_runs = RunDirectory(tmp_path).read_status()
        with pytest.raises(CheckpointError, match=rf"process {child.pid} on .* is training this run"):
            with RunDirectory(tmp_path).running():
                pytest.fail("two processes train one run")
        child.send_signal(signal.SIGKILL)
    killed = RunDirectory(tmp_path).read_status()
    assert while_it_runs is not None
    assert killed is not None
    assert (while_it_runs.state, killed.state) == ("running", "killed")
    with RunDirectory(tmp_path).running():
        again = RunDirectory(tmp_path).read_status()
        assert again is not None
        assert (again.state, again.attempts) == ("running", 2)


def test_a_finished_run_says_so(trained: Path) -> None:
    status = RunDirectory(trained / "runs/tiny").read_status()
    assert status is not None
    assert (status.state, status.why) == ("finished", "")


def test_a_run_that_diverges_has_failed(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, "optim.lr=1e30", "tracking.log_every_steps=1") == 2
    status = RunDirectory(tmp_path / "runs/tiny").read_status()
    assert status is not None
    assert status.state == "failed"
    assert "training has diverged" in status.why
    assert status.why in capsys.readouterr().err
