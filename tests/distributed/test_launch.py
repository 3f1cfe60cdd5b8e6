"""Ranks started as a user starts them, stopped, killed, and going on."""

import argparse
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import run as torch_launcher

from pipeline import launch
from pipeline.runs.directory import RunDirectory
from tests.helpers import processes, ranks, tiny

MORE = ["train.epochs=4", "tracking.log_every_steps=1", "optim.phases=[{name: adamw}]"]
LAST = "runs/tiny/checkpoints/last.pt"


def launched(
    name: str, tmp: Path, *more: str, restarts: int = 0, module: str = "pipeline.launch"
) -> list[str]:
    """The command line of two ranks on this machine."""
    head = [sys.executable, "-m", module, "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    pipeline = ["-m", "pipeline"] if module != "pipeline.launch" else []
    return [*head, *pipeline, name, *tiny.overrides(tmp, *more)]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the undisturbed ranks have: rounding depends on it


@pytest.fixture(scope="module")
def undisturbed(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of two ranks that nothing happened to."""
    tmp = tmp_path_factory.mktemp("undisturbed")
    assert [rank.value for rank in ranks.run(ranks.run_verb, 2, "train", tmp, *MORE)] == [0, 0]
    return tmp / LAST


def disturb(
    words: list[str], when: Callable[[], bool], how: Callable[[int], None]
) -> subprocess.CompletedProcess[str]:
    """Start a launcher, do something to its process (by number) as soon as something holds, wait for its end."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 120
        while not when():
            assert child.poll() is None, child.stderr and child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        how(child.pid)
        out, error = child.communicate(timeout=120)
    return subprocess.CompletedProcess(words, child.returncode, out, error)


def kill_rank_1(launcher: int) -> None:
    """Kill one of a launcher's children by a signal that it cannot answer."""
    for path in Path(f"/proc/{launcher}/task").glob("*/children"):
        for child in path.read_text().split():
            if b"RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                os.kill(int(child), signal.SIGKILL)
                return
    raise AssertionError("rank 1 is not there")


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_all_ranks_and_the_same_command_goes_on(
    undisturbed: Path, tmp_path: Path
) -> None:
    words = launched("train", tmp_path, *MORE, restarts=2)
    for number, step in [(signal.SIGUSR1, 7), (signal.SIGTERM, 13)]:
        stopped = disturb(
            words, tiny.log_reaches(tmp_path, step), lambda pid, number=number: os.kill(pid, number)
        )
        assert stopped.returncode == 75, stopped.stderr
        assert f"stopped by {number.name}" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert not tiny.same_weights(tmp_path / LAST, undisturbed)
    done = tiny.launch(words)
    assert done.returncode == 0, done.stderr
    assert tiny.same_weights(tmp_path / LAST, undisturbed)


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_job_goes_on_by_itself(undisturbed: Path, tmp_path: Path) -> None:
    words = launched("train", tmp_path, *MORE, "train.checkpoint_every_steps=1", restarts=1)
    done = disturb(words, tiny.log_reaches(tmp_path, 7), kill_rank_1)
    assert done.returncode == 0, done.stderr
    assert f"rank 1 on {os.uname().nodename}, process " in done.stderr
    assert "no longer answers" in done.stderr
    assert done.stderr.count("run    ") == 2
    assert tiny.same_weights(tmp_path / LAST, undisturbed)


@pytest.mark.slow
def test_ranks_whose_launcher_is_killed_save_and_end(undisturbed: Path, tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    words = launched("train", tmp_path, *MORE, "train.epochs=400")
    disturb(
        ["env", f"{processes.MARK}={mark}", *words],
        tiny.log_reaches(tmp_path, 7),
        lambda pid: os.kill(pid, signal.SIGKILL),
    )
    assert processes.all_end(mark)
    status = RunDirectory(tmp_path / "runs" / "tiny").read_status()
    assert status is not None
    assert status.state == "stopped"


def test_an_error_on_all_ranks_is_said_once(birds: Path, tmp_path: Path) -> None:
    done = tiny.launch(launched("train", tmp_path, "data.root=nowhere"))
    assert done.returncode == 2
    assert done.stderr.count("missing; run `plumage data` with the same --config and keys") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchrun_itself_does_as_well(undisturbed: Path, tmp_path: Path) -> None:
    done = tiny.launch(launched("train", tmp_path, *MORE, module="torch.distributed.run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert tiny.same_weights(tmp_path / LAST, undisturbed)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """What torchrun is asked to do, by a launcher on a machine whose name does not resolve."""

    def unknown(name: str, _port: object, **_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    asked: list[argparse.Namespace] = []
    monkeypatch.setattr(torch_launcher, "run", asked.append)
    monkeypatch.setattr(
        launch, "_watch", lambda _: None
    )  # a thread of it would live on, and end this process
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(socket, "getfqdn", lambda: "node-17")
    return asked


RENDEZVOUS = ("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:29511")


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["--standalone"], "localhost"),
        ([], "localhost"),
        ([*RENDEZVOUS], "localhost"),
        (["--nnodes=1:1", *RENDEZVOUS], "localhost"),
        (["--standalone", "--local-addr=10.0.0.7"], "10.0.0.7"),
        (["--nnodes=2", "--local-addr=10.0.0.7", *RENDEZVOUS], "10.0.0.7"),
        (["--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.7"], None),
    ],
)
def test_ranks_need_the_name_of_their_machine_only_where_other_machines_take_it(
    asked: list[argparse.Namespace], words: list[str], address: str | None
) -> None:
    assert launch.launch([*words, "--nproc-per-node=2", "train"]) == 0
    assert [args.local_addr for args in asked] == [address]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--nnodes=2", *RENDEZVOUS],
            "node-17, does not resolve (Name or service not known); .*--local-addr",
        ),
        (["--nnodes=1:4", *RENDEZVOUS], "node-17, does not resolve"),
        (["--nnodes=many"], "many"),
        (["--nproc-per-node=some"], "some"),
        (["--nproc-per-node=0"], r"--nproc-per-node (make: GPUS) is 0; give 1 or more"),
        (["--nproc-per-node=-1"], r"--nproc-per-node (make: GPUS) is -1; give 1 or more"),
    ],
)
def test_what_the_launcher_cannot_do_is_one_sentence(
    asked: list[argparse.Namespace], words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.launch([*words, "train"]) == 2
    assert re.search(sentence.replace("(", r"\(").replace(")", r"\)"), capsys.readouterr().err)
    assert not asked


@pytest.mark.slow
def test_two_ranks_train_on_a_machine_whose_name_does_not_resolve(birds: Path, tmp_path: Path) -> None:
    words = shlex.join(launched("train", tmp_path, "train.epochs=1"))
    namespace = ["unshare", "-ru", "sh", "-c", f"hostname no-such-host && {words}"]
    if tiny.launch(["unshare", "-ru", "hostname", "no-such-host"]).returncode:
        pytest.skip("a host name of its own is not permitted here")
    assert tiny.launch(namespace, timeout=300).returncode == 0


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 75, 1: 75}, 75),
        ({0: 75, 1: 2}, 2),
        ({0: 1}, 1),
        ({1: -9}, 137),
        ({0: 75, 1: -9}, 137),
        ({0: -9, 1: 1}, 1),
    ],
)
def test_the_exit_code_is_that_of_the_worst_rank(codes: dict[int, int], expected: int) -> None:
    assert launch.worst(codes) == expected
