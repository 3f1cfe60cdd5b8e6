"""The device of a process, and what is set for it before torch computes."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from pipeline.common import hardware, nvidia
from pipeline.common.errors import ConfigError
from pipeline.config.training import TrainConfig
from pipeline.distributed import process_group
from pipeline.distributed.process_group import select_device

OBSTACLE = nvidia.Obstacle("NVIDIA's driver is too old", "update the driver, or set train.device=cpu")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leaves this process as it was."""
    workspace = os.environ.get(hardware.CUBLAS_WORKSPACE)
    yield
    hardware.configure(deterministic=False)
    if workspace is None:
        os.environ.pop(hardware.CUBLAS_WORKSPACE, None)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("tf32", [False, True])
def test_a_process_computes_as_its_configuration_says(deterministic: bool, tf32: bool) -> None:
    assert select_device(TrainConfig(device="cpu", deterministic=deterministic, tf32=tf32)).type == "cpu"
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.backends.cudnn.benchmark != deterministic
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert torch.backends.cuda.matmul.allow_tf32 == tf32


def test_the_workspaces_of_cublas_are_set_before_torch_has_started_cuda() -> None:
    """A deterministic run may follow another one in the same process: cuBLAS reads the variable once."""
    code = (
        "import os; from pipeline.config.training import TrainConfig; import torch\n"
        "from pipeline.distributed import process_group\n"
        "process_group.hardware.limit_threads = lambda: print(\n"
        "    os.environ['CUBLAS_WORKSPACE_CONFIG'], torch.cuda.is_initialized())\n"
        "process_group.select_device(TrainConfig(device='cpu'))\n"
        "process_group.select_device(TrainConfig(device='cpu', deterministic=True))"
    )
    environment = {key: value for key, value in os.environ.items() if key != hardware.CUBLAS_WORKSPACE}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == ":4096:8 False\n" * 2, done.stderr


@pytest.mark.parametrize(
    ("obstacle", "sentence"),
    [(None, "no CUDA device is visible; set"), (OBSTACLE, "driver is too old; update")],
)
def test_a_gpu_that_is_asked_for_and_missing_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, obstacle: nvidia.Obstacle | None, sentence: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvidia, "why_no_gpu", lambda: obstacle)
    with pytest.raises(ConfigError, match=f"train.device: cuda, but .*{sentence}"):
        select_device(TrainConfig(device="cuda"))


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, but RANK is not; start with torchrun, or unset it"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is set, but MASTER_ADDR is not; start with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a number of ranks; start with torchrun"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0' is not a number of ranks; start with torchrun"),
    ],
)
def test_half_an_environment_of_torchrun_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sentence: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=sentence), process_group.join(TrainConfig(device="cpu")):
        pytest.fail("joined nothing")


def test_auto_says_why_it_takes_the_cpu_of_a_machine_with_a_driver(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvidia, "why_no_gpu", lambda: OBSTACLE)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select_device(TrainConfig(device="auto")).type == "cpu"
    assert capsys.readouterr().err == "", "one rank of a machine says it"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert select_device(TrainConfig(device="auto")).type == "cpu"
    assert (
        "auto uses the CPU, because NVIDIA's driver is too old; update the driver" in capsys.readouterr().err
    )
    assert select_device(TrainConfig(device="cpu")).type == "cpu"
    assert capsys.readouterr().err == ""


def test_a_gpu_that_torch_has_no_kernels_for_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(nvidia, "why_unusable", lambda _: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert select_device(TrainConfig()) == torch.device("cuda", 0)
    monkeypatch.setattr(
        nvidia, "why_unusable", lambda _: nvidia.Obstacle("V100 is too old", "install another")
    )
    with pytest.raises(ConfigError, match="train.device: V100 is too old; install another"):
        select_device(TrainConfig())
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="2 ranks or more on a machine with 1 GPUs"):
        select_device(TrainConfig())


def test_threads_are_limited_to_the_cores_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    limited: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(process_group, "_own_gpu", lambda: torch.device("cuda", 0))  # private: there is none
    monkeypatch.setattr(hardware, "limit_threads", lambda: limited.append(True))
    assert select_device(TrainConfig()).type == "cuda"
    assert limited == [True]
