"""Checks of what is trained: pretrained weights, and a run that goes on."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.common import seeding
from pipeline.models.build import build_model
from pipeline.runs.directory import RunDirectory
from tests.helpers import tiny
from tests.helpers.findings import Findings, states


def test_missing_weights_are_a_no_go_and_all_else_is_looked_at(ask: Callable[..., Findings]) -> None:
    findings = ask("--quick", "model.pretrained=true", "model.weights=nowhere.pth", go=False)
    assert states(findings, "no-go") == {"weights"}
    assert findings["weights"]["figures"] == "nowhere.pth: no such weights file"
    assert findings["weights"]["next"] == "give its path as model.weights=PATH"
    assert {"model", "rates", "disk"} <= states(findings, "ok")
    assert {"memory", "first step", "speed"} <= states(findings, "not applicable")


def test_weights_are_shown_not_to_be_random(ask: Callable[..., Findings], tmp_path: Path) -> None:
    torch.manual_seed(7)
    good = build_model(tiny.config(tmp_path).model, tiny.SPECIES)[0].backbone.state_dict()
    torch.save(good, tmp_path / "good.pth")
    overrides = "--quick", "model.pretrained=true"
    weights = ask(*overrides, f"model.weights={tmp_path / 'good.pth'}", go=True)["weights"]
    assert weights["numbers"]["share"] == 1
    assert weights["numbers"]["licence"] is None
    assert "tensors loaded, licence not known; " in weights["figures"]
    assert weights["numbers"]["unlike_random"] == weights["numbers"]["matrices"] > 5
    kept = {name: tensor for name, tensor in good.items() if not name.startswith("conv1.1.")}
    torch.save(kept, tmp_path / "most.pth")
    assert ask(*overrides, f"model.weights={tmp_path / 'most.pth'}", go=True)["weights"]["state"] == "warning"


def test_random_weights_in_a_file_are_a_no_go(ask: Callable[..., Findings], tmp_path: Path) -> None:
    torch.manual_seed(seeding.seed_of("weights", 0))
    torch.save(
        build_model(tiny.config(tmp_path).model, tiny.SPECIES)[0].backbone.state_dict(), tmp_path / "w.pth"
    )
    overrides = "--quick", "model.pretrained=true", f"model.weights={tmp_path / 'w.pth'}"
    weights = ask(*overrides, go=False)["weights"]
    assert weights["state"] == "no-go"
    assert weights["numbers"]["unlike_random"] == 0


def test_a_run_that_goes_on_or_may_not(ask: Callable[..., Findings], trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    start = ask("--quick", go=True)["start"]
    assert start["state"] == "warning"
    assert "nothing is left to train" in start["figures"]
    assert tiny.do("train", tmp_path, "train.max_steps=2", "run.name=cut") == 0
    findings = ask("run.name=cut", "model.pretrained=true", "model.weights=nowhere.pth", go=True)
    assert "resumes from" in findings["start"]["figures"]
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


def test_a_model_of_another_image_size_is_a_no_go_and_all_else_is_looked_at(
    ask: Callable[..., Findings],
) -> None:
    findings = ask("model.name=vit_tiny_patch16_224", go=False)
    assert states(findings, "no-go") == {"passes"}
    assert "Input height (32) doesn't match model (224)" in findings["passes"]["figures"]
    assert (
        "set data.image_px to its own 224, or try model.options={img_size: 32}" in findings["passes"]["next"]
    )
    assert {"crops", "shares", "model", "rates", "disk"} <= states(findings, "ok")
    for name in ("evaluation", "memory"):
        assert findings[name]["figures"] == "not looked at, because of passes"
    findings = ask("--quick", "model.name=vit_tiny_patch16_224", "model.options={img_size: 32}", go=True)
    assert findings["passes"]["figures"].startswith(
        "forward and backward on images of 32 px, and a step of sgd"
    )


def test_options_of_a_later_phase_are_a_no_go(ask: Callable[..., Findings]) -> None:
    phases = "optim.phases=[{name: adam, until: 2}, {name: sgd, options: {foo: 1}}]"
    findings = ask("--quick", phases, go=False)
    assert states(findings, "no-go") == {"passes", "rates", "disk"}  # all of them build it
    assert "unexpected keyword argument 'foo'" in findings["passes"]["figures"]


def test_a_run_that_another_process_trains_is_a_no_go(
    ask: Callable[..., Findings], trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    with RunDirectory(tmp_path / "runs/tiny").running():
        start = ask("--quick", go=False)["start"]
    assert f"is training {tmp_path / 'runs/tiny'}" in start["figures"]
    assert start["next"] == "wait for its end, stop it, or take another run.name"
