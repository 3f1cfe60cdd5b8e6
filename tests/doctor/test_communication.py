"""The check of gradient exchange."""

from pathlib import Path

import pytest
import torch

from pipeline.distributed.process_group import Ranks
from pipeline.doctor import communication
from tests.helpers.findings import RanksWithAnswers, built_model, context


def test_a_wrong_sum_over_ranks_is_a_no_go(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built_model(tmp_path)
    two_ranks = context(tmp_path, ranks=RanksWithAnswers(0, 2, 1, torch.device("cpu")))
    monkeypatch.setattr(Ranks, "barrier", lambda _: None)
    monkeypatch.setattr(Ranks, "all_reduce_sum", lambda _, tensor: tensor)
    assert communication.all_reduce(two_ranks, model).state == "no-go"
    monkeypatch.setattr(Ranks, "all_reduce_sum", lambda _, tensor: tensor.add_(2 * (tensor > 0)))
    assert communication.all_reduce(two_ranks, model).state == "ok"
