"""Machines whose GPU torch does not see, or cannot use: one sentence says why, and what to do."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common import nvidia
from pipeline.common.hardware import DEVICES

PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Jun  8 02:56:55 UTC 2023\nGCC version:  gcc 12"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U22-I3)\nGCC version:"
HOPPER = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a GPU that torch sees; the file that is returned is the driver's, and not there yet."""
    monkeypatch.setattr(nvidia, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(nvidia, "SMI", "no-such-program")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(DEVICES, raising=False)
    return tmp_path / "version"


@pytest.mark.parametrize(
    ("built", "driver", "what", "next_"),
    [
        (
            None,
            "580.65.06",
            "driver 580.65.06, but torch [^ ]+ is built without CUDA",
            "install a PyTorch build with CUDA, or",
        ),
        (
            "13.0",
            "550.54.15",
            "driver is 550.54.15, .* built for CUDA 13.0, which needs 580 or",
            "update the driver",
        ),
        (
            "12.6",
            "470.82",
            "driver is 470.82, .* built for CUDA 12.6, which needs 525 or",
            "for an older CUDA",
        ),
        (
            "13.0",
            "580.65.06",
            r"driver 580.65.06, but torch [^ ]+ \(CUDA 13.0\) sees no GPU",
            "nvidia-smi lists one",
        ),
        ("12.6", "550.54.15", "sees no GPU", "CUDA_VISIBLE_DEVICES=7"),
        ("99.0", "550.54.15", "sees no GPU", "nvidia-smi lists one"),
    ],
)
@pytest.mark.parametrize("text", [PROPRIETARY, OPEN])
def test_why_torch_sees_no_gpu(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    built: str | None,
    driver: str,
    what: str,
    next_: str,
) -> None:
    machine.write_text(text.format(driver))
    monkeypatch.setenv(DEVICES, "7")
    monkeypatch.setattr(torch.version, "cuda", built)
    obstacle = nvidia.why_no_gpu()
    assert obstacle is not None
    assert re.search(what, obstacle.what)
    assert next_ in obstacle.next
    assert obstacle.next.endswith("or set train.device=cpu")


def test_a_machine_without_a_driver_has_no_gpu_to_be_missed(machine: Path) -> None:
    assert nvidia.driver() is None
    assert nvidia.why_no_gpu() is None


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_are_not_missed(
    machine: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    machine.write_text(OPEN.format("580.65.06"))
    assert nvidia.why_no_gpu() is not None
    monkeypatch.setenv(DEVICES, hidden)
    assert nvidia.why_no_gpu() is None


@pytest.mark.parametrize(("code", "expected"), [("echo 580.65.06", "580.65.06"), ("exit 9", None)])
def test_where_there_is_no_such_file_nvidia_smi_is_asked(
    machine: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: str | None
) -> None:
    program = machine.with_name("smi")
    program.write_text(f"#!/bin/sh\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(nvidia, "SMI", str(program))
    assert nvidia.driver() == expected


def test_a_driver_that_does_not_answer_is_not_waited_for(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: Any, timeout: float, **__: Any) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", timeout)

    monkeypatch.setattr(nvidia, "SMI", "true")
    monkeypatch.setattr(subprocess, "run", hangs)
    assert nvidia.driver() is None


@pytest.mark.parametrize(
    ("capability", "architectures", "usable"),
    [
        ((7, 0), HOPPER, False),
        ((7, 5), HOPPER, True),
        ((8, 9), HOPPER, True),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_86"], True),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), HOPPER, True),
        ((12, 1), HOPPER, True),
        ((8, 0), ["sm_86"], False),
    ],
)
def test_a_gpu_that_torch_has_no_kernels_for_is_named(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], architectures: list[str], usable: bool
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    obstacle = nvidia.why_unusable(torch.device("cuda", 0))
    assert (obstacle is None) == usable
    if obstacle is not None:
        assert (
            f"Tesla V100 has compute capability {capability[0]}.{capability[1]}, but torch" in obstacle.what
        )
        assert architectures[0] in obstacle.what
        assert "install a PyTorch build for this generation" in obstacle.next


@pytest.mark.parametrize(
    "message",
    ["CUDA error: all CUDA-capable devices are busy or unavailable", "CUDA error: out of memory"],
)
def test_a_gpu_that_another_process_fills_or_has_alone_is_named(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError(f"{message}\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: HOPPER)
    monkeypatch.setattr(torch, "ones", fails)
    obstacle = nvidia.why_unusable(torch.device("cuda", 1))
    assert obstacle is not None
    assert obstacle.what == f"cuda:1 does not compute ({message})"
    assert "nvidia-smi" in obstacle.next
