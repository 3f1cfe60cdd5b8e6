import json
from pathlib import Path

import pytest
import torch

from pipeline.models import precision
from pipeline.models.precision import autocast, resolve_precision
from tests.helpers import tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("setting", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_asked_for_is_taken(setting: precision.Precision) -> None:
    assert resolve_precision(setting, CPU) == setting


@pytest.mark.parametrize(("has_it", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_on_a_cpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, has_it: bool, expected: str
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_it)
    assert resolve_precision("auto", CPU) == expected


def test_autocast_computes_in_the_precision_and_is_inert_for_fp32() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(CPU, name):  # type: ignore[arg-type]
            assert layer(x).dtype == dtype


def test_a_resumed_run_and_its_evaluation_keep_the_precision_of_its_beginning(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = "train.precision=auto"
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert tiny.do("train", tmp_path, auto, "train.max_steps=2") == 0
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    assert tiny.do("train", tmp_path, auto, "train.max_steps=4") == 0
    assert tiny.do("eval", tmp_path, auto) == 0
    last = torch.load(tmp_path / "runs/tiny/checkpoints/last.pt", weights_only=True)
    assert last["precision"] == "bf16"
    assert json.loads((tmp_path / "runs/tiny/environment.json").read_text())["precision"] == "bf16"
    assert tiny.do("train", tmp_path, "train.precision=bf16", "train.max_steps=4", "run.name=asked") == 0
    asked = tmp_path / "runs/asked/checkpoints/last.pt"
    assert tiny.same_weights(asked, tmp_path / "runs/tiny/checkpoints/last.pt")
