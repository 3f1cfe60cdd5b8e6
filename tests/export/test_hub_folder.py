"""The hub folder of an export is read by timm alone, and gives the logits of the run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from pipeline.cli.main import run
from pipeline.common import tables
from pipeline.export import hub_folder, onnx_file
from pipeline.export.model_card import text
from pipeline.export.standalone import crop_of
from pipeline.runs.directory import RunDirectory
from tests.helpers import folders, tiny


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older exporter alone, which is the quicker one."""
    monkeypatch.setattr(onnx_file, "EXPORTERS", {"torchscript": onnx_file.by_torchscript})


def trained_run(tmp: Path, *more: str) -> RunDirectory:
    assert tiny.do("train", tmp, "train.epochs=1", *more) == 0
    return RunDirectory(tmp / "runs/tiny")


def export(own_run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["export", str(own_run.path)]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_timm_reads_the_network_and_its_logits_are_those_of_the_run(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the average of the weights, which is what was validated, and options of the network."""
    own_run = trained_run(tmp_path, "train.ema_decay=0.5", "model.mean=[0.3, 0.4, 0.5]", "model.pool=avgmax")
    assert (
        tiny.do("eval", tmp_path, "train.ema_decay=0.5", "model.mean=[0.3, 0.4, 0.5]", "model.pool=avgmax")
        == 0
    )
    assert export(own_run, capsys)["hub"] <= 1e-5
    assert folders.digests(own_run.export / "hub").keys() == {"README.md", "config.json", "model.safetensors"}
    network = timm.create_model(f"local-dir:{own_run.export / 'hub'}", pretrained=True).eval()
    said = json.loads((own_run.export / "hub/config.json").read_text())
    mean, std = (np.array(said["pretrained_cfg"][name]) for name in ("mean", "std"))
    assert mean == pytest.approx([0.3, 0.4, 0.5])
    facts = json.loads((own_run.export / "export.json").read_text())["metadata"]
    golden = json.loads((own_run.export / "golden/golden.json").read_text())["pictures"]
    for picture in golden:
        crop = crop_of(own_run.export / "golden" / picture["file"], facts["preprocessing"])
        images = torch.tensor(((crop / 255 - mean) / std).transpose(2, 0, 1)[None], dtype=torch.float32)
        with torch.inference_mode():
            logits = network(images)[0].numpy()
        assert logits == pytest.approx(picture["logits"], abs=1e-5 * float(np.abs(picture["logits"]).max()))
    assert said["label_names"] == facts["classes"]
    card = (own_run.export / "hub/README.md").read_text()
    assert "| test (exploratory) | 18 | top-1 | " in card
    assert "license: other" in card
    for row in tables.read_csv(own_run.evaluation("test").table("per_class")).to_dict("records"):
        name = row["class_name"].replace("_", r"\_")
        interval = f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}"
        assert f"\n| {name} | {row['n']} | {row['accuracy']:.3f} | {interval} |\n" in card
    seconds = own_run.read_log()[-1]["seconds"]
    assert f"The training took {seconds:,.0f} s in fp32 on " in card


def test_a_network_of_this_program_has_no_hub_folder_and_that_is_said(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_run = trained_run(tmp_path, "model.name=plumage/resnet_small")
    assert run(["export", str(own_run.path)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["hub"] is None
    assert "no hub folder, as timm has no plumage/resnet_small" in said.err
    assert not (own_run.export / "hub").exists()


def test_weights_that_timm_reads_otherwise_are_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_run = trained_run(tmp_path)
    true = hub_folder.save_for_hf

    def other(network: Any, *words: Any, **more: Any) -> None:
        with torch.no_grad():
            network.fc.weight.mul_(-1)
        true(network, *words, **more)
        with torch.no_grad():
            network.fc.weight.mul_(-1)

    monkeypatch.setattr(hub_folder, "save_for_hf", other)
    assert run(["export", str(own_run.path)]) == 2
    assert "the network that timm loads from the hub folder answers differently" in capsys.readouterr().err
    assert not own_run.export.exists()


def test_a_card_of_weights_with_a_licence_names_it_and_one_without_numbers_says_so(tmp_path: Path) -> None:
    facts = {
        "program": "plumage",
        "classes": ["a", "b"],
        "preprocessing": {"resize": "squash", "resize_px": 40, "image_px": 32},
        "temperature": None,
        "unknown": None,
        "origin": dict.fromkeys(["epoch", "checkpoint_sha256", "config_sha256", "sample_table_sha256"], "1"),
        "weights": {"source": "timm/x", "sha256": None, "licence": "apache-2.0"},
        "numbers": [],
    }
    card = text(tiny.config(tmp_path), facts)
    assert "license: apache-2.0\n" in card
    assert "Not measured: no `plumage eval` of this checkpoint." in card
    assert "Probabilities are not calibrated." in card
    top1 = {"value": 0.5, "low": 0.25, "high": 0.75}
    entries = [("test", None, "confirmatory"), ("test", "clean", "confirmatory"), ("val", None, None)]
    names = "split", "labels", "protocol"
    facts["numbers"] = [{**dict(zip(names, one, strict=True)), "n": 1234, "top1": top1} for one in entries]
    for split in ("test (confirmatory)", "test, labels of clean (confirmatory)", "val"):
        row = f"| {split} | 1,234 | top-1 | 0.5000 | 0.2500 to 0.7500 |"
        assert row in text(tiny.config(tmp_path), facts)
