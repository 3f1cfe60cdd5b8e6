"""A run goes on from its checkpoint with the same configuration, also one of an earlier version."""

from pathlib import Path

import pytest
import torch

from pipeline.config.load import warn_renamed
from tests.helpers import tiny


def test_a_run_whose_files_have_a_key_under_its_old_name_goes_on(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["train.epochs=1", "schedule={name: plateau, min_factor: 0.1}"]
    assert tiny.do("train", tmp_path, *settings, "train.max_steps=2") == 0
    last = tiny.checkpoints(tmp_path) / "last.pt"
    content = torch.load(last, weights_only=True)
    schedule = content["config"]["schedule"]
    schedule["least_factor"] = schedule.pop("min_factor")
    torch.save(content, last)
    saved = last.parents[1] / "config.yaml"
    saved.write_text(saved.read_text().replace("min_factor", "least_factor"))
    warn_renamed.cache_clear()
    capsys.readouterr()
    assert tiny.do("train", tmp_path, *settings) == 0
    warnings = capsys.readouterr().err
    assert warnings.count("schedule.least_factor is now schedule.min_factor") == 1
    assert torch.load(last, weights_only=True)["step"] == 5  # 36 images, 8 a step
    assert "min_factor: 0.1" in saved.read_text()
    assert tiny.do("train", tmp_path, *settings, "schedule.min_factor=0.2") == 2
    assert "schedule.min_factor 0.1 -> 0.2" in capsys.readouterr().err
