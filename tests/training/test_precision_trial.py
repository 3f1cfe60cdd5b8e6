"""`train.precision=fastest`: one trial for a run, on the first rank; and what the run began in stays."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.common.errors import ConfigError
from pipeline.distributed.process_group import Ranks
from pipeline.doctor.doctor import doctor
from pipeline.models import precision
from pipeline.training import precision_trial
from pipeline.training.precision_trial import choose_precision, fastest_precision
from tests.helpers import tiny

CPU = torch.device("cpu")
FASTEST = "train.precision=fastest"


def clock(monkeypatch: pytest.MonkeyPatch, *, fp32_s: float, bf16_s: float = 1.0) -> list[str]:
    """Let passes take these seconds on a CPU that has bf16; the formats that were tried."""
    tried: list[str] = []

    def pass_s(_model: object, images: torch.Tensor, in_precision: str) -> float:
        assert images.shape[0] == 2
        tried.append(in_precision)
        first = len(tried) <= 2  # it warms up, and does not count
        return 100.0 if first else {"fp32": fp32_s, "bf16": bf16_s}[in_precision]

    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(precision_trial, "pass_s", pass_s)
    return tried


@pytest.mark.parametrize(
    ("fp32_s", "expected"), [(2.0, "bf16"), (1.11, "bf16"), (1.09, "fp32"), (0.5, "fp32")]
)
def test_bf16_is_taken_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fp32_s: float, expected: str
) -> None:
    tried = clock(monkeypatch, fp32_s=fp32_s)
    assert fastest_precision(tiny.config(tmp_path, FASTEST), CPU) == expected
    assert tried == ["fp32", "bf16"] * 4


def test_without_bf16_units_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = clock(monkeypatch, fp32_s=2)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    assert fastest_precision(tiny.config(tmp_path, FASTEST), CPU) == "fp32"
    assert not tried


def test_a_trial_takes_real_passes_and_draws_from_no_global_stream(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    before = torch.get_rng_state()
    chosen = fastest_precision(tiny.config(tmp_path, FASTEST, "model.freeze_batchnorm=true"), CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert f"format {chosen}: bf16 is " in capsys.readouterr().err
    with pytest.raises(ConfigError, match="there is no|no model"):
        fastest_precision(tiny.config(tmp_path, FASTEST, "model.name=resnet51"), CPU)


def test_the_first_rank_tries_and_the_others_take_what_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class SecondRank:
        is_main, device = False, CPU

        def broadcast(self, value: object) -> str:
            assert value == "bf16", "auto's: nothing was tried"
            return "fp16"

    tried = clock(monkeypatch, fp32_s=0.5)
    ranks: Any = SecondRank()
    assert choose_precision(tiny.config(tmp_path, FASTEST), ranks) == "fp16"
    assert not tried
    assert choose_precision(tiny.config(tmp_path, FASTEST), Ranks.single(CPU)) == "fp32"


def test_a_resumed_run_and_its_evaluation_keep_the_format_when_the_trial_would_now_say_otherwise(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, fp32_s=2)
    assert tiny.do("train", tmp_path, FASTEST, "train.max_steps=2") == 0
    tried = clock(monkeypatch, fp32_s=0.5)
    assert tiny.do("train", tmp_path, FASTEST, "train.max_steps=4") == 0
    assert tiny.do("eval", tmp_path, FASTEST) == 0
    assert not tried
    run = tmp_path / "runs/tiny"
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["precision"] == "bf16"
    assert json.loads((run / "environment.json").read_text())["precision"] == "bf16"
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert tiny.do("train", tmp_path, "train.precision=bf16", "train.max_steps=4", "run.name=asked") == 0
    assert tiny.same_weights(tmp_path / "runs/asked/checkpoints/last.pt", run / "checkpoints/last.pt")


def test_doctor_says_what_a_training_would_take(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, fp32_s=2)
    checks = doctor(tiny.config(tmp_path, FASTEST), quick=True)["checks"]
    (found,) = [check for check in checks if check["name"] == "precision"]
    assert found["figures"].startswith("bf16 (fastest)")
    found_wrong = doctor(tiny.config(tmp_path, FASTEST, "model.name=resnet51"), quick=True)
    assert not found_wrong["go"]
