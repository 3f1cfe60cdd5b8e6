"""Checks of the data: changed pictures and tables, crops that repeat, images on two ranks."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.data import prepare, sampling, stages, transforms
from pipeline.doctor import data
from pipeline.doctor.products import OwnData
from pipeline.inference import predict
from tests.helpers import tiny
from tests.helpers.findings import Findings, context, states


def copied(birds: Path, tmp: Path) -> str:
    """An override: a copy of the prepared data."""
    shutil.copytree(birds, tmp / "data")
    return f"data.root={tmp / 'data'}"


def test_a_changed_picture_in_the_store_is_a_no_go(
    ask: Callable[..., Findings], birds: Path, tmp_path: Path
) -> None:
    root = copied(birds, tmp_path)
    (pixels,) = tmp_path.glob("data/*/store-squash40-packed/pixels.bin")
    changed = bytearray(pixels.read_bytes())
    changed[0] ^= 255
    pixels.write_bytes(changed)
    findings = ask("--quick", root, go=False)
    assert states(findings, "no-go") == {"pixels"}
    assert "run `plumage data --verify`" in findings["pixels"]["next"]


def test_pixels_that_no_sample_shows_are_found_by_the_digest(birds: Path, tmp_path: Path) -> None:
    config = context(tmp_path, copied(birds, tmp_path))
    assert data.digests(config, OwnData(config.config)).state == "ok"
    (pixels,) = tmp_path.glob("data/*/store-squash40-packed/pixels.bin")
    changed = bytearray(pixels.read_bytes())
    changed[40 * 40 * 3] ^= 255  # of the second picture
    pixels.write_bytes(changed)
    finding = data.digests(config, OwnData(config.config))
    assert finding.state == "no-go"
    assert "pixels.bin has other content than it was made with" in finding.figures


def test_data_of_the_first_version_have_no_digests(birds: Path, tmp_path: Path) -> None:
    config = context(tmp_path, copied(birds, tmp_path))
    for path in prepare.output_paths(config.config):
        stamp = stages.stamp_of(path)
        stamp.write_text(json.dumps({"inputs": json.loads(stamp.read_text())["inputs"]}))
    finding = data.digests(config, OwnData(config.config))
    assert finding.state == "warning"
    assert "made by an earlier version" in finding.figures


def test_a_store_of_other_texts_is_a_no_go(ask: Callable[..., Findings], birds: Path, tmp_path: Path) -> None:
    root = copied(birds, tmp_path)
    (boxes,) = tmp_path.glob("data/*/raw/**/bounding_boxes.txt")
    boxes.write_text(boxes.read_text() + "\n")
    findings = ask("--quick", root, go=False)
    assert states(findings, "no-go") == {"data"}
    assert "store-squash40-packed (made from other inputs)" in findings["data"]["figures"]


def test_a_test_image_in_training_is_a_no_go(
    ask: Callable[..., Findings], birds: Path, tmp_path: Path
) -> None:
    root = copied(birds, tmp_path)
    path, store = prepare.output_paths(tiny.config(tmp_path, root))
    path.write_text(path.read_text().replace(",test\n", ",train\n", 1))
    findings = ask("--quick", root, go=False)
    assert "has changed since it was made" in findings["data"]["figures"]
    for output in (path, store):
        stages.stamp_as_it_is(output)
    findings = ask("--quick", root, go=False)
    assert "test is not the official test split" in findings["data"]["figures"]


def test_a_class_that_is_never_taught_is_a_warning(
    ask: Callable[..., Findings], birds: Path, tmp_path: Path
) -> None:
    root = copied(birds, tmp_path)
    (flags,) = tmp_path.glob("data/*/raw/**/train_test_split.txt")
    lines = flags.read_text().splitlines()
    flags.write_text("".join(f"{line.split()[0]} 0\n" for line in lines[:10]) + "\n".join(lines[10:]) + "\n")
    assert tiny.do("data", tmp_path, root) == 0
    finding = ask("--quick", root, go=True)["data"]
    assert finding["state"] == "warning"
    assert "no training image of 001." in finding["figures"]


def test_crops_that_repeat_themselves_are_a_no_go(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeated(prepared: Any, view: Any, workers: int, epoch: int, batches: list[Any]) -> list[Any]:
        return [np.zeros((len(batch), 3, 32, 32), np.uint8) for batch in batches]

    monkeypatch.setattr(data, "draw_crops", repeated)
    crops = ask("--quick", go=False)["crops"]
    assert crops["state"] == "no-go"
    assert crops["numbers"]["unlike_processes"] == crops["numbers"]["unlike_epochs"] == 0


def test_crops_that_depend_on_the_process_are_a_no_go(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_of = transforms.seeding.seed_of
    monkeypatch.setattr(transforms.seeding, "seed_of", lambda *names: seed_of(*names, os.getpid()))
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
        patched.setattr(sampling, "shard_batches", lambda batches, _: doubled(batches))
        assert states(ask("--quick", go=False), "no-go") == {"shares"}
    for module in (sampling, predict):
        monkeypatch.setattr(module, "distribute_batches", lambda batches, _: (doubled(batches), 0))
    assert states(ask("--quick", go=False), "no-go") == {"shares", "evaluation"}
