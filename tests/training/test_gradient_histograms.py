"""Histograms of gradients: counts that are torch's own, by operations that have a deterministic algorithm on GPUs."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.gradient_histograms import BINS, histograms
from tests.helpers.operations import Called

VALUES = {
    "normal": torch.randn(4099, generator=torch.Generator().manual_seed(0)),
    "tiny": 1e-30 * torch.randn(999, generator=torch.Generator().manual_seed(1)),
    "on the edges": torch.linspace(-1, 1, BINS + 1).repeat(3),
    "few digits": torch.randn(5000, generator=torch.Generator().manual_seed(2)).bfloat16().float(),
    "one alone": torch.tensor([2.5]),
    "alike": torch.full((7,), -3.0),
    "many": torch.randn(300_000, generator=torch.Generator().manual_seed(3)),
}


def counted(values: Tensor) -> list[int]:
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.grad = values[None]
    counts: list[int] = histograms(layer)["weight"]["counts"]
    return counts


@pytest.mark.parametrize("name", VALUES)
def test_counts_are_those_of_torchs_own_histogram(name: str) -> None:
    values = VALUES[name]
    low, high = values.min().item(), values.max().item()
    if low == high:
        low, high = low - 0.5, high + 0.5
    assert counted(values) == torch.histc(values, BINS, low, high).tolist()


def test_a_spread_that_float32_cannot_hold_is_counted_too() -> None:
    assert sum(counted(torch.tensor([-3e38, 0.0, 3e38]))) == 3


def test_no_operation_is_without_a_deterministic_algorithm_on_gpus() -> None:
    """`torch.use_deterministic_algorithms` lists what raises on CUDA: histc, and bincount of weights."""
    with Called() as called:
        counted(VALUES["normal"])
    assert "histc" not in called.names
    assert "bincount" in called.names
