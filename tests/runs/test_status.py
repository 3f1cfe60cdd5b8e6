import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.common import files
from pipeline.common.errors import REFUSALS, CheckpointError, DataError, Stopped, UserError
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


WHOLE = {
    "state": "stopped",
    "why": "stopped by SIGTERM at step 4",
    "host": "here",
    "pid": 1,
    "attempts": 7,
    "started": "2026-01-02T03:04:05+00:00",
    "updated": "2026-01-02T03:04:06+00:00",
}


def test_a_status_of_a_later_version_is_read_and_counted_on(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.status_file.write_text(json.dumps({**WHOLE, "gpu_hours": 3.5}))
    status = run.read_status()
    assert status is not None
    assert asdict(status) == WHOLE
    with run.running():
        pass
    status = run.read_status()
    assert status is not None
    assert (status.state, status.attempts, status.started) == ("finished", 8, WHOLE["started"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff",
        *(
            json.dumps({key: value for key, value in WHOLE.items() if key != left_out}).encode()
            for left_out in WHOLE
        ),
        *(json.dumps(WHOLE | {key: None}).encode() for key in WHOLE),
        json.dumps(WHOLE | {"state": "asleep"}).encode(),
        json.dumps(WHOLE | {"attempts": "7"}).encode(),
    ],
)
def test_a_damaged_status_is_named_and_never_to_be_deleted_and_stays(tmp_path: Path, content: bytes) -> None:
    run = RunDirectory(tmp_path)
    run.status_file.write_bytes(content)
    for read in (run.read_status, lambda: run.running().__enter__()):
        with pytest.raises(
            DataError, match=r"status\.json: damaged \(.*\); restore it from a copy, or fix it"
        ) as said:
            read()
        assert "delete" not in str(said.value)
    assert run.status_file.read_bytes() == content


def test_how_a_run_ended_is_written_down_where_no_byte_is_free(small_disk: Path) -> None:
    run = RunDirectory(small_disk)
    with pytest.raises(OSError, match="No space left"), run.running():
        for size in (4096, 1):  # a file larger than what is free takes it all, to the byte
            with (
                contextlib.suppress(OSError),
                (small_disk / f"filler-{size}").open("wb", buffering=0) as filler,
            ):
                while True:
                    filler.write(b"0" * size)
        files.write_text(small_disk / "log.jsonl", "a record" * 1000)
    status = run.read_status()
    assert status is not None
    assert status.state == "failed"
    assert status.why == f"{small_disk / 'log.jsonl'}: {REFUSALS[errno.ENOSPC]}"


def test_a_status_that_cannot_be_written_does_not_hide_what_ended_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(UserError, match="the loss is nan"), run.running():
        run.status_file.unlink()
        run.status_file.mkdir()
        raise UserError("step 3: the loss is nan")
    assert capsys.readouterr().err.startswith("warning: the status of the run stays as it was: ")
