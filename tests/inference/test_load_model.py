"""A checkpoint becomes a model; the digest is that of the bytes that were read."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from pipeline.common import files
from pipeline.data import prepare
from pipeline.distributed.process_group import Ranks
from pipeline.inference import load_model, predicting_form
from tests.helpers import tiny


def test_a_checkpoint_that_a_training_replaces_meanwhile_is_read_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(trained)
    best, last = (tiny.checkpoints(trained) / name for name in ("best.pt", "last.pt"))
    path, newer = tmp_path / "best.pt", tmp_path / "newer.pt"
    shutil.copy(best, path)
    shutil.copy(last, newer)
    content = torch.load(newer, weights_only=True)
    torch.save({**content, "step": 99}, newer)
    read = load_model.read

    def replaced_behind_it(which: Path) -> dict[str, Any]:
        content = read(which)
        if newer.exists():
            os.replace(newer, which)  # noqa: PTH105
        return content

    monkeypatch.setattr(load_model, "read", replaced_behind_it)
    samples = prepare.load(config).samples
    model = load_model.load_model(config, samples, path, Ranks.single(torch.device("cpu")))
    assert model.step == 99
    assert model.sha256 == files.digest_of_file(path)


def test_a_format_without_units_is_said_once(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a model in bfloat16 on a V100 or T4."""
    config, path = tiny.config(trained), tiny.checkpoints(trained) / "best.pt"
    samples = prepare.load(config).samples
    alone = Ranks.single(torch.device("cpu"))
    monkeypatch.setattr(load_model, "has_units", lambda *_: False)
    load_model._warn_where_slow.cache_clear()
    for _ in range(2):
        load_model.load_model(config, samples, path, alone)
    said = " ".join(capsys.readouterr().err.split())
    load_model._warn_where_slow.cache_clear()
    assert said.count("warning: train.precision: the model predicts in fp32, in which it was trained") == 1


def test_the_trial_pass_times_no_algorithms(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = tiny.config(trained), tiny.checkpoints(trained) / "best.pt"
    seen: list[tuple[bool, bool]] = []
    handle = register_module_forward_pre_hook(
        lambda *_: seen.append((torch.backends.cudnn.benchmark, torch.is_autocast_enabled("cpu")))
    )
    monkeypatch.setattr(predicting_form, "fuse_convolutions", lambda *_: None)  # as on a GPU
    monkeypatch.setattr(
        predicting_form, "fold_batchnorms", lambda model, _: model
    )  # has passes of its own, on a CPU
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        model = load_model._model(config, load_model.read(path), path).eval()
        predicting_form.predicting_form(model, config, "bf16", torch.device("cpu"))
    finally:
        handle.remove()
    assert set(seen) == {(False, True)}
