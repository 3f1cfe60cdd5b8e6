"""A checkpoint becomes a model; the digest is that of the bytes that were read."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common import files
from pipeline.data import prepare
from pipeline.distributed.process_group import Ranks
from pipeline.inference import load_model
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
