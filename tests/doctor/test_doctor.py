"""The doctor on a machine that is well, and on machines that are not: each ill has its finding and exit code."""

import io
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.cli import main
from pipeline.common import hardware, seeding
from pipeline.data import prepare, sampling, transforms
from pipeline.data.transforms import Augmentation
from pipeline.distributed.process_group import Ranks
from pipeline.doctor import communication, data, machine
from pipeline.doctor.context import CheckContext
from pipeline.doctor.disk import checkpoint_bytes
from pipeline.doctor.doctor import CHECKS
from pipeline.doctor.finding import Finding, agreed, unlike
from pipeline.doctor.training import throughput
from pipeline.models.build import build
from pipeline.training import auto_batch_size, phases, step
from pipeline.training.setup import TrainingSetup
from tests.helpers import ranks, tiny

Findings = dict[str, dict[str, Any]]
ALONE = Ranks(0, 1, 1, torch.device("cpu"))


@pytest.fixture
def ask(birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Findings]:
    """Run the doctor on the tiny job in this process; its findings by name."""

    def run(*words: str, go: bool) -> Findings:
        capsys.readouterr()
        code = tiny.do("doctor", tmp_path, *words)
        out = capsys.readouterr().out
        result = json.loads(out)
        assert out.count("\n") == 1
        assert (code, result["go"]) == ((0, True) if go else (2, False))
        return {check["name"]: check for check in result["checks"]}

    return run


def states(findings: Findings, state: str) -> set[str]:
    return {name for name, finding in findings.items() if finding["state"] == state}


def everything_below(*folders: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for folder in folders for path in folder.rglob("*")}


def test_a_machine_that_is_well(ask: Callable[..., Findings], birds: Path, tmp_path: Path) -> None:
    before = everything_below(birds, tmp_path)
    findings = ask("data.workers=2", "optim.effective_batch_size=16", "schedule.warmup_epochs=1", go=True)
    assert everything_below(birds, tmp_path) == before
    assert list(findings) == [check.name for check in CHECKS]
    assert states(findings, "not applicable") == {"W&B", "agreement", "all-reduce"}
    keys = {"name", "state", "figures", "next", "numbers"}
    assert all(finding.keys() == keys for finding in findings.values())
    (rates,) = findings["rates"]["numbers"]["phases"]
    # 36 images in steps of 16: three an epoch, nine in all; warm-up ends with the third.
    assert rates["first"] == pytest.approx([0.02 / 3] * rates["groups"])
    assert rates["highest"] == pytest.approx([0.02] * rates["groups"])
    assert rates["last"] == pytest.approx([0.02 * (1 + np.cos(np.pi * 5 / 6)) / 2] * rates["groups"])
    assert findings["rates"]["numbers"]["images_per_step"] == 16
    counted = findings["data"]["numbers"]
    assert [counted[name] for name in ("images", "train", "val", "test")] == [60, 36, 6, 18]
    assert findings["crops"]["numbers"]["unlike_processes"] > 8
    assert findings["crops"]["numbers"]["unlike_epochs"] > 8
    assert findings["first step"]["numbers"]["repeats"] is True
    speed = findings["speed"]["numbers"]
    assert speed["images_per_s"] == min(speed["loader_images_per_s"], speed["step_images_per_s"])
    images = 9 * 16 + 9 * 16 / 36 * 6 / 3
    assert speed["hours"] == pytest.approx(images / speed["images_per_s"] / 3600)


def test_missing_data_are_a_no_go_and_random_pictures_stand_in(
    ask: Callable[..., Findings], tmp_path: Path
) -> None:
    findings = ask(f"data.root={tmp_path / 'none'}", "data.store=jpeg", go=False)
    assert states(findings, "no-go") == {"data"}
    assert findings["data"]["next"] == "run `make data`"
    assert {"pixels", "start"} <= states(findings, "not applicable")
    assert {"crops", "shares", "rates", "evaluation", "disk", "first step"} <= states(findings, "ok")
    assert findings["speed"]["numbers"]["images_per_s"] > 0
    assert findings["disk"]["numbers"]["data_bytes"] > 60 * 40 * 40
    assert not (tmp_path / "none").exists()


def test_a_source_of_arrays_and_a_part_of_it(ask: Callable[..., Findings], tmp_path: Path) -> None:
    words = ["--quick", "data.source=digits", f"data.root={tmp_path / 'data'}"]
    words += ["data.train_images=100", "data.val_images=50", "data.test_images=50"]
    counts = "100 train in 13 steps, 50 val, 50 test"
    assert counts in ask(*words, go=False)["shares"]["figures"]
    assert tiny.do("data", tmp_path, *words[1:]) == 0
    findings = ask(*words, go=True)
    assert counts in findings["shares"]["figures"]
    assert {"data", "pixels", "crops"} <= states(findings, "ok")


def test_missing_weights_are_a_no_go_and_all_else_is_looked_at(ask: Callable[..., Findings]) -> None:
    findings = ask("--quick", "model.pretrained=true", "model.weights=nowhere.pth", go=False)
    assert states(findings, "no-go") == {"weights"}
    assert findings["weights"]["figures"] == "nowhere.pth: no such weights file"
    assert findings["weights"]["next"] == "give its path as model.weights=PATH"
    assert {"model", "rates", "disk"} <= states(findings, "ok")
    assert {"memory", "first step", "speed"} <= states(findings, "not applicable")


def test_weights_are_shown_not_to_be_random(ask: Callable[..., Findings], tmp_path: Path) -> None:
    of_model = tiny.config(tmp_path).model
    torch.manual_seed(7)
    good = build(of_model, tiny.SPECIES)[0].backbone.state_dict()
    torch.save(good, tmp_path / "good.pth")
    words = "--quick", "model.pretrained=true"
    weights = ask(*words, f"model.weights={tmp_path / 'good.pth'}", go=True)["weights"]
    assert weights["numbers"]["share"] == 1
    assert weights["numbers"]["unlike_random"] == weights["numbers"]["matrices"] > 5
    kept = {name: tensor for name, tensor in good.items() if not name.startswith("conv1.1.")}
    torch.save(kept, tmp_path / "most.pth")
    assert ask(*words, f"model.weights={tmp_path / 'most.pth'}", go=True)["weights"]["state"] == "warning"


def test_random_weights_in_a_file_are_a_no_go(ask: Callable[..., Findings], tmp_path: Path) -> None:
    torch.manual_seed(seeding.seed_of("weights", 0))
    torch.save(build(tiny.config(tmp_path).model, tiny.SPECIES)[0].backbone.state_dict(), tmp_path / "w.pth")
    words = "--quick", "model.pretrained=true", f"model.weights={tmp_path / 'w.pth'}"
    weights = ask(*words, go=False)["weights"]
    assert weights["state"] == "no-go"
    assert weights["numbers"]["unlike_random"] == 0


@pytest.mark.parametrize("small_disk", ["128k"], indirect=True)
def test_a_full_disk_is_a_no_go(ask: Callable[..., Findings], small_disk: Path) -> None:
    disk = ask("--quick", f"run.root={small_disk}/runs", go=False)["disk"]
    assert disk["state"] == "no-go"
    assert "run.root" in disk["next"]
    assert not list(small_disk.iterdir())


def test_the_size_of_a_checkpoint_is_foreseen(trained: Path, tmp_path: Path) -> None:
    for words in ([], ["train.ema_decay=0.9", "optim.name=adamw", "train.max_steps=1"]):
        if words:
            assert tiny.do("train", tmp_path, *words) == 0
        folder = tmp_path if words else trained
        subject = CheckContext(tiny.config(folder, *words), ALONE, "fp32", tmp_path)
        subject.job = TrainingSetup(subject.config, ALONE)
        subject.state = subject.job.build_state(
            phases.first(subject.config.optim), "fp32", pretrained=False
        ).state
        size = (folder / "runs/tiny/checkpoints/last.pt").stat().st_size
        names = len(subject.state.model.state_dict())
        # What is not in a tensor is some 200 bytes for each of them, and the settings.
        assert 0 < size - checkpoint_bytes(subject) < 40_000 + 2_000 * names


def test_too_small_a_shared_memory_is_a_no_go(
    ask: Callable[..., Findings], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", small_disk)
    words = "--quick", "data.workers=2", "data.image_px=40", "optim.batch_size=36"
    workers = ask(*words, go=True)["workers"]  # 6 batches of 36 x 3 x 40 x 40 bytes: 0.99 MiB
    assert workers["numbers"]["needed_bytes"] == 6 * 36 * 3 * 40 * 40
    (small_disk / "filled").write_bytes(bytes(100_000))
    workers = ask(*words, go=False)["workers"]
    assert workers["state"] == "no-go"
    assert "--shm-size" in workers["next"]


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
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module")
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", tmp_path / "version")
    auto = CheckContext(tiny.config(tmp_path, "train.device=auto"), ALONE, "fp32", tmp_path)
    assert machine.device(auto).state == "no-go"


def test_wandb_online_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    subject = CheckContext(tiny.config(tmp_path, "tracking.wandb=online"), ALONE, "fp32", tmp_path)
    assert machine.tracking(subject).state == "no-go"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert machine.tracking(subject).state == "ok"
    assert "secret" not in machine.tracking(subject).figures
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert machine.tracking(subject).state == "no-go"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert machine.tracking(subject).state == "ok"


# The data


def test_a_changed_picture_in_the_store_is_a_no_go(
    ask: Callable[..., Findings], birds: Path, tmp_path: Path
) -> None:
    shutil.copytree(birds, tmp_path / "data")
    (pixels,) = tmp_path.glob("data/*/store-squash40-packed/pixels.bin")
    changed = bytearray(pixels.read_bytes())
    changed[0] ^= 255
    pixels.write_bytes(changed)
    findings = ask("--quick", f"data.root={tmp_path / 'data'}", go=False)
    assert states(findings, "no-go") == {"pixels"}
    assert "run `make data`" in findings["pixels"]["next"]


def test_a_store_of_other_texts_is_a_no_go(ask: Callable[..., Findings], birds: Path, tmp_path: Path) -> None:
    shutil.copytree(birds, tmp_path / "data")
    (boxes,) = tmp_path.glob("data/*/raw/**/bounding_boxes.txt")
    boxes.write_text(boxes.read_text() + "\n")
    findings = ask("--quick", f"data.root={tmp_path / 'data'}", go=False)
    assert states(findings, "no-go") == {"data"}
    assert "made from other inputs" in findings["data"]["figures"]


def test_a_test_image_in_training_is_a_no_go(
    ask: Callable[..., Findings], birds: Path, tmp_path: Path
) -> None:
    shutil.copytree(birds, tmp_path / "data")
    path, _ = prepare.output_paths(tiny.config(tmp_path, f"data.root={tmp_path / 'data'}"))
    path.write_text(path.read_text().replace(",test\n", ",train\n", 1))
    findings = ask("--quick", f"data.root={tmp_path / 'data'}", go=False)
    assert "test is not the official test split" in findings["data"]["figures"]


def test_crops_that_repeat_themselves_are_a_no_go(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeated(subject: Any, view: Any, workers: int, epoch: int, batches: list[Any]) -> list[Any]:
        return [np.zeros((len(batch), 3, 32, 32), np.uint8) for batch in batches]

    monkeypatch.setattr(data, "_drawn", repeated)
    crops = ask("--quick", go=False)["crops"]
    assert crops["state"] == "no-go"
    assert crops["numbers"]["unlike_processes"] == crops["numbers"]["unlike_epochs"] == 0


def test_crops_that_depend_on_the_process_are_a_no_go(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = transforms.seeding.seed_of
    monkeypatch.setattr(transforms.seeding, "seed_of", lambda *names: named(*names, os.getpid()))
    assert ask("--quick", go=False)["crops"]["state"] == "no-go"


def test_no_augmentation_is_a_warning(ask: Callable[..., Findings]) -> None:
    crops = ask("--quick", "data.image_px=40", "data.flip=false", go=True)["crops"]
    assert crops["state"] == "warning"


def test_an_image_on_two_ranks_is_a_no_go(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(batches: list[npt.NDArray[np.int64]]) -> list[npt.NDArray[np.int64]]:
        return [np.append(batch, batch[:1]) for batch in batches]

    with monkeypatch.context() as patched:
        patched.setattr(sampling, "share", lambda batches, _: doubled(batches))
        assert states(ask("--quick", go=False), "no-go") == {"shares"}
    monkeypatch.setattr(sampling, "dealt", lambda batches, _: (doubled(batches), []))
    assert states(ask("--quick", go=False), "no-go") == {"shares", "evaluation"}


# The run


def test_a_run_that_goes_on_or_may_not(ask: Callable[..., Findings], trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    start = ask("--quick", go=True)["start"]
    assert start["state"] == "warning"
    assert "nothing is left to train" in start["figures"]
    assert tiny.do("train", tmp_path, "train.max_steps=2", "run.name=cut") == 0
    findings = ask("run.name=cut", "model.pretrained=true", "model.weights=nowhere.pth", go=True)
    assert "goes on from" in findings["start"]["figures"]
    assert findings["start"]["numbers"]["step"] == 2
    assert findings["weights"]["state"] == "not applicable"
    speed = findings["speed"]["numbers"]
    # 13 of 15 steps of 8 images are left, and as many epochs' validation of 6 images at a third
    left = 13 * 8
    images = left + left / 36 * 6 / 3
    assert speed["hours"] == pytest.approx(images / speed["images_per_s"] / 3600)
    start = ask("--quick", "optim.lr=0.5", go=False)["start"]
    assert start["state"] == "no-go"
    assert "optim.lr 0.02 -> 0.5" in start["figures"]


def test_a_batch_that_does_not_fit_is_a_no_go_that_says_what_does(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_batch_size, "fitting", lambda *_: 3)
    findings = ask(go=False)
    assert findings["memory"]["state"] == "no-go"
    assert "optim.batch_size=3 optim.effective_batch_size=8" in findings["memory"]["next"]
    assert {"first step", "speed"} <= states(findings, "not applicable")
    findings = ask("optim.batch_size=auto", "optim.effective_batch_size=8", go=True)
    assert findings["memory"]["numbers"]["batch_size"] == 3


def test_a_step_that_is_not_repeatable_is_a_no_go(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step.torch, "manual_seed", lambda _: None)
    assert ask("model.dropout=0.5", go=False)["first step"]["state"] == "no-go"


def test_a_loader_slower_than_the_step_is_a_warning(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Augmentation.__call__

    def slow(self: Augmentation, picture: Any, epoch: int, index: int) -> Any:
        time.sleep(0.1)  # no step of the tiny model is as slow, on whatever machine
        return seen(self, picture, epoch, index)

    monkeypatch.setattr(Augmentation, "__call__", slow)
    monkeypatch.setattr("pipeline.doctor.data.SHOWN", 2)
    monkeypatch.setattr("pipeline.doctor.training.STEPS_AT_MOST", 2)
    speed = ask("optim.batch_size=4", go=True)["speed"]
    assert speed["state"] == "warning"
    assert "the loader is the bottleneck" in speed["figures"]


def test_throughput_of_loader_and_step() -> None:
    assert throughput(30.0, 60.0, workers=2) == 30
    assert throughput(30.0, 60.0, workers=0) == pytest.approx(20)


# Ranks


class Told(Ranks):
    """Ranks whose others have said this already."""

    others: tuple[Any, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


def test_the_worst_finding_of_all_ranks_counts_and_names_its_host() -> None:
    fine, bad = Finding("ok", "50 GiB free"), Finding("no-go", "1 MiB free", "free some space")
    told = Told(0, 3, 1, torch.device("cpu"))
    object.__setattr__(told, "others", ((fine, "b"), (fine, "c")))
    assert agreed(fine, told) == fine
    object.__setattr__(told, "others", ((bad, "b"), (fine, "c")))
    assert agreed(fine, told) == Finding("no-go", "rank 1 on b: 1 MiB free", "free some space")
    object.__setattr__(told, "others", ((Finding("not applicable", ""), "b"),) * 2)
    assert agreed(fine, told) == fine
    object.__setattr__(told, "others", (({"torch": "2.14"}, "b"), ({"torch": "2.13"}, "c")))
    assert unlike({"torch": "2.14"}, told).endswith("and 2.13 on rank 2 (c)")


def test_a_wrong_sum_over_ranks_is_a_no_go(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = CheckContext(tiny.config(tmp_path), ALONE, "fp32", tmp_path)
    subject.job = TrainingSetup(subject.config, ALONE)
    subject.state = subject.job.build_state(
        phases.first(subject.config.optim), "fp32", pretrained=False
    ).state
    subject.ranks = Told(0, 2, 1, torch.device("cpu"))
    monkeypatch.setattr(Ranks, "sum", lambda _, tensor: tensor)
    monkeypatch.setattr(Ranks, "wait", lambda _: None)
    assert communication.all_reduce(subject).state == "no-go"
    monkeypatch.setattr(Ranks, "sum", lambda _, tensor: tensor.add_(2 * (tensor > 0)))
    assert communication.all_reduce(subject).state == "ok"


def look(tmp: Path, *words: str) -> tuple[int, str]:
    """On each rank: the doctor; its exit code and what it printed."""
    with redirect_stdout(io.StringIO()) as out:
        code = main.run(["doctor", *tiny.overrides(tmp, *words)])
    return code, out.getvalue()


@pytest.mark.parametrize("distributed", ["{sync_batchnorm: true}", "{shard: full}"])
def test_two_ranks_look_together(birds: Path, tmp_path: Path, distributed: str) -> None:
    ended = ranks.run(look, 2, tmp_path, f"distributed={distributed}")
    assert [rank.code for rank in ended] == [0, 0], ended[0].said
    (code, out), other = (rank.value for rank in ended)
    assert (code, *other) == (0, 0, "")
    result = json.loads(out)
    findings = {check["name"]: check for check in result["checks"]}
    assert (result["ranks"], states(findings, "no-go")) == (2, set())
    assert findings["all-reduce"]["state"] == "ok"
    assert all(size["bus_gb_per_s"] > 0 for size in findings["all-reduce"]["numbers"].values())
    assert "6 val images predicted on 2 ranks" in findings["evaluation"]["figures"]
    if "shard" in distributed:
        assert {"memory", "first step"} <= states(findings, "not applicable")
    else:
        assert len(findings["speed"]["numbers"]["alone_images_per_s"]) == 2
        assert "the slowest rank " in findings["speed"]["figures"]
    assert findings["speed"]["numbers"]["images_per_s"] > 0
    assert not (tmp_path / "runs").exists()


def test_a_no_go_of_two_ranks_is_one_for_the_launcher(birds: Path, tmp_path: Path) -> None:
    ended = ranks.run(
        look,
        2,
        tmp_path,
        "--quick",
        f"data.root={tmp_path / 'none'}",
        "model.weights=nowhere.pth",
        "model.pretrained=true",
    )
    (code, out), other = (rank.value for rank in ended)
    assert (code, *other) == (2, 0, "")
    findings = {check["name"]: check for check in json.loads(out)["checks"]}
    assert states(findings, "no-go") == {"data", "weights"}
    assert findings["weights"]["figures"] == "nowhere.pth: no such weights file"
    assert {"crops", "shares", "evaluation", "rates"} <= states(findings, "ok")
