"""The whole doctor, on one rank and on two: what it says, its verdict, its exit code, and that it keeps nothing."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.common import hardware
from pipeline.doctor.doctor import CHECKS
from tests.helpers import ranks, tiny
from tests.helpers.findings import Findings, states


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
    assert findings["data"]["next"] == "run `plumage data` with the same --config and keys"
    assert {"pixels", "start"} <= states(findings, "not applicable")
    assert {"crops", "shares", "rates", "evaluation", "disk", "first step"} <= states(findings, "ok")
    assert findings["speed"]["numbers"]["images_per_s"] > 0
    assert findings["disk"]["numbers"]["data_bytes"] > 60 * 40 * 40
    assert not (tmp_path / "none").exists()


def test_where_no_pictures_can_stand_in_what_needs_data_is_skipped(
    ask: Callable[..., Findings], tmp_path: Path
) -> None:
    findings = ask("--quick", f"data.root={tmp_path / 'none'}", "data.train_images=100000", go=False)
    assert states(findings, "no-go") == {"data", "agreement"}
    assert findings["start"]["figures"] == "not looked at, because of data and agreement"
    assert findings["crops"]["figures"] == "not looked at, because of agreement"
    assert findings["disk"]["figures"] == "not looked at, because of model"


def test_a_source_of_arrays_and_a_part_of_it(ask: Callable[..., Findings], tmp_path: Path) -> None:
    overrides = ["--quick", "data.source=digits", f"data.root={tmp_path / 'data'}"]
    overrides += ["data.train_images=100", "data.val_images=50", "data.test_images=50"]
    counts = "100 train in 13 steps, 50 val, 50 test"
    assert counts in ask(*overrides, go=False)["shares"]["figures"]
    assert tiny.do("data", tmp_path, *overrides[1:]) == 0
    findings = ask(*overrides, go=True)
    assert counts in findings["shares"]["figures"]
    assert {"data", "pixels", "crops"} <= states(findings, "ok")


def test_steps_are_checked_with_the_algorithms_of_the_run(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr(hardware, "configure", lambda **settings: asked.append(settings))
    ask("--quick", "train.deterministic=true", "train.tf32=true", go=True)
    assert asked == [{"deterministic": True, "tf32": True}]


def run_doctor(tmp: Path, *overrides: str) -> tuple[int, str]:
    """On each rank: the doctor; its exit code and its standard output."""
    with redirect_stdout(io.StringIO()) as out:
        code = main.run(["doctor", *tiny.overrides(tmp, *overrides)])
    return code, out.getvalue()


@pytest.mark.parametrize(
    "distributed", ["{sync_batchnorm: true}", pytest.param("{shard: full}", marks=pytest.mark.slow)]
)
def test_two_ranks_look_together(birds: Path, tmp_path: Path, distributed: str) -> None:
    ended = ranks.run(run_doctor, 2, tmp_path, f"distributed={distributed}")
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


@pytest.mark.slow
def test_a_no_go_of_two_ranks_is_one_for_the_launcher(birds: Path, tmp_path: Path) -> None:
    ended = ranks.run(
        run_doctor,
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
