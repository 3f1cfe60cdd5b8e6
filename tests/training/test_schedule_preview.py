"""What `plumage schedule` shows before a training."""

import json
from pathlib import Path

import pytest

from tests.helpers import tiny


def test_a_phase_for_which_no_step_is_left_is_said(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["train.epochs=1", "optim.batch_size=64"]  # one step
    phases = "optim.phases=[{name: adam, until: {name: plateau, epochs: 1}}, {name: sgd}]"
    assert tiny.do("schedule", tmp_path, *short, phases) == 0
    said = capsys.readouterr()
    assert "phase sgd: no step is left for it; raise train.epochs" in said.err
    assert json.loads(said.out)["steps"] == 1
    assert (tmp_path / "runs/tiny/schedule.png").is_file()
