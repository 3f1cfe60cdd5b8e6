"""Checks of the machine: GPU, key of W&B, loader processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.common import hardware, nvidia
from pipeline.data import loader, shared_memory
from pipeline.doctor import machine
from tests.helpers.findings import Findings, context, states


def test_too_small_a_shared_memory_is_a_no_go_before_a_loader_process_starts(
    ask: Callable[..., Findings], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", small_disk)
    overrides = "--quick", "data.workers=2", "data.image_px=40", "optim.batch_size=36", "eval.batch_size=36"
    workers = ask(*overrides, go=True)["workers"]  # 6 batches of 36 x 3 x 40 x 40 bytes: 0.99 MiB
    assert workers["numbers"]["needed_bytes"] == 6 * 36 * 3 * 40 * 40
    (small_disk / "filled").write_bytes(bytes(100_000))
    monkeypatch.setattr(loader.Loader, "batches", None)
    findings = ask(*overrides, go=False)
    assert states(findings, "no-go") == {"workers"}
    assert "--shm-size" in findings["workers"]["next"]
    assert findings["crops"]["figures"].startswith("not looked at")


def test_loader_processes_need_no_folder_of_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path / "as on macOS")
    finding, processes = machine.workers(context(tmp_path, "data.workers=1"))
    assert finding.state == "ok"
    assert processes is not None


def test_more_loader_processes_than_cores_are_a_warning(ask: Callable[..., Findings]) -> None:
    processes = hardware.cores() + 1
    findings = ask("--quick", f"data.workers={processes}", go=True)
    assert findings["workers"]["state"] == "warning"


def test_a_gpu_that_is_asked_for_and_missing_is_a_no_go(
    ask: Callable[..., Findings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    findings = ask("--quick", "train.device=cuda", go=False)
    assert states(findings, "no-go") == {"device"}
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5")
    monkeypatch.setattr(nvidia, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv(hardware.DEVICES, raising=False)
    finding = machine.device(context(tmp_path, "train.device=auto"))
    assert finding.state == "no-go"
    assert finding.figures.startswith("NVIDIA's driver is 550.54.15, but torch")
    assert "update the driver" in finding.next
    assert machine.device(context(tmp_path, "train.device=cpu")).state != "no-go"


def test_wandb_online_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    online = context(tmp_path, "tracking.wandb=online")
    assert machine.tracking(online).state == "no-go"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert machine.tracking(online).state == "ok"
    assert "secret" not in machine.tracking(online).figures
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert machine.tracking(online).state == "no-go"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert machine.tracking(online).state == "ok"
