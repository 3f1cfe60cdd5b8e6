"""The Slurm script with a fake srun and scontrol: when it queues a job again, and that it goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers import tiny

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts/slurm/train.sbatch"
SWEEP = ROOT / "scripts/slurm/sweep.sbatch"
FAKES = ROOT / "tests/fake_slurm"


def job(tmp: Path, **environment: str) -> dict[str, str]:
    """The environment that Slurm gives a batch script on one node."""
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    path = f"{FAKES}:{os.environ['PATH']}"
    return {**os.environ, **slurm, "PATH": path, "SCONTROL_CALLS": str(tmp / "calls"), **environment}


def calls(tmp: Path) -> list[str]:
    """How scontrol was called, but for host names."""
    return (tmp / "calls").read_text().splitlines() if (tmp / "calls").exists() else []


def submit(words: list[str], environment: dict[str, str], script: Path = SCRIPT) -> subprocess.Popen[str]:
    command = ["bash", str(script), *words]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_until(holds: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert child.poll() is None, "the job ended before"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def launcher(tmp: Path, body: str) -> str:
    """A program in the place of Python; it writes its arguments to a file."""
    path = tmp / "launcher"
    path.write_text(f'#!/usr/bin/env bash\necho "$@" >> {tmp}/arguments\n{body}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (75, True)])
def test_only_a_job_that_can_go_on_is_queued_again(tmp_path: Path, code: int, again: bool) -> None:
    python = launcher(tmp_path, f"exit {code}")
    done = submit(["configs/demo.yaml"], job(tmp_path, PYTHON=python))
    done.communicate(timeout=60)
    assert done.returncode == code
    assert calls(tmp_path) == ["requeue 4711"] * again
    assert len((tmp_path / "arguments").read_text().splitlines()) == (2 if code == 0 else 1)  # data, train


@pytest.mark.parametrize(
    ("number", "code", "again"),
    [
        (signal.SIGUSR1, 75, True),
        (signal.SIGUSR1, 137, True),  # killed while it saved: what was saved before is whole
        (signal.SIGUSR1, 0, False),  # it was at its end
        (signal.SIGTERM, 75, False),  # cancelled
    ],
)
def test_a_signal_is_passed_on_as_a_request_to_save(
    tmp_path: Path, number: signal.Signals, code: int, again: bool
) -> None:
    python = launcher(
        tmp_path, f"trap 'exit {code}' USR1\ntouch {tmp_path}/ready\nwhile :; do sleep 0.1; done"
    )
    running = submit(["configs/demo.yaml"], job(tmp_path, PYTHON=python, VERBS="train"))
    wait_until((tmp_path / "ready").exists, running)
    running.send_signal(number)
    running.communicate(timeout=60)
    assert running.returncode == code
    assert calls(tmp_path) == ["requeue 4711"] * again


def test_an_array_trains_seeds_and_a_node_as_many_ranks_as_it_has_gpus(tmp_path: Path) -> None:
    environment = job(
        tmp_path,
        PYTHON=launcher(tmp_path, ""),
        SLURM_ARRAY_TASK_ID="2",
        SLURM_GPUS_ON_NODE="8",
        VERBS="train",
    )
    for words in (["configs/demo.yaml", "optim.lr=0.1"], ["configs/demo.yaml", "run.name=mine", "seed=9"]):
        submit(words, environment).communicate(timeout=60)
    first, second = (tmp_path / "arguments").read_text().splitlines()
    assert "-m pipeline.launch --nnodes 1 --nproc-per-node 8 " in first
    assert first.endswith("train --config configs/demo.yaml optim.lr=0.1 seed=2 run.name=demo_seed2")
    assert second.endswith("run.name=mine seed=9 seed=2 run.name=mine_seed2")


@pytest.mark.parametrize(
    ("gpus", "cores", "said"),
    [
        (
            "8",
            "8",
            "warning: 8 cores for 8 GPUs are fewer than the 4 a GPU that its loader needs; give sbatch ",
        ),
        ("8", "64", ""),
        ("1", "4", ""),
        ("", "2", ""),
    ],
)
def test_few_cores_for_a_gpu_are_said(tmp_path: Path, gpus: str, cores: str, said: str) -> None:
    slurm = {"SLURM_CPUS_PER_TASK": cores} | ({"SLURM_GPUS_ON_NODE": gpus} if gpus else {})
    environment = job(tmp_path, PYTHON=launcher(tmp_path, ""), VERBS="train", **slurm)
    _, errors = submit(["configs/demo.yaml"], environment).communicate(timeout=60)
    assert errors == (f"{said}--cpus-per-task=64\n" if said else "")


def test_without_a_configuration_it_says_how_it_is_called(tmp_path: Path) -> None:
    for words in ([], ["nowhere.yaml"]):
        done = submit(words, job(tmp_path))
        _, said = done.communicate(timeout=60)
        assert (done.returncode, said.startswith("usage")) == (2, True)


@pytest.mark.slow
def test_preempted_and_queued_again_it_ends_as_if_nothing_had_been(birds: Path, tmp_path: Path) -> None:
    words = tiny.overrides(tmp_path, "tracking.log_every_steps=1", "train.epochs=6")
    environment = job(tmp_path, PYTHON=sys.executable, VERBS="train", RANKS_PER_NODE="2")
    last, log = (tmp_path / "runs/tiny" / name for name in ("checkpoints/last.pt", "log.jsonl"))

    running = submit(["configs/smoke.yaml", *words], environment)
    wait_until(lambda: log.is_file() and '"step": 7,' in log.read_text(), running)
    running.send_signal(signal.SIGUSR1)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 75, said
    assert calls(tmp_path) == ["requeue 4711"]
    assert 7 <= torch.load(last, weights_only=True)["step"] < 30

    for more in ([], ["run.name=calm"]):
        done = submit(["configs/smoke.yaml", *words, *more], environment)
        _, said = done.communicate(timeout=300)
        assert done.returncode == 0, said
    assert calls(tmp_path) == ["requeue 4711"]
    assert torch.load(last, weights_only=True)["step"] == 30
    assert tiny.same_weights(last, tmp_path / "runs/calm/checkpoints/last.pt")


@pytest.mark.parametrize(
    ("number", "code", "again"),
    [
        (None, 0, False),
        (None, 2, False),
        (None, 75, True),
        (signal.SIGUSR1, 75, True),
        (signal.SIGTERM, 75, False),  # cancelled
    ],
)
def test_a_task_of_a_sweep_is_asked_to_save_and_queued_again(
    tmp_path: Path, number: signal.Signals | None, code: int, again: bool
) -> None:
    body = f"trap 'exit {code}' TERM\ntouch {tmp_path}/ready\nwhile :; do sleep 0.1; done"
    environment = job(tmp_path, PYTHON=launcher(tmp_path, body if number else f"exit {code}"))
    words = ["configs/sweeps/birds.yaml", "--trials", "20", "optim.nesterov=false"]
    task = submit(words, environment, SWEEP)
    if number is not None:
        wait_until((tmp_path / "ready").exists, task)
        task.send_signal(number)
    task.communicate(timeout=60)
    assert task.returncode == code
    assert calls(tmp_path) == ["requeue 4711"] * again
    assert (tmp_path / "arguments").read_text().split() == ["-m", "pipeline", "sweep", *words]
