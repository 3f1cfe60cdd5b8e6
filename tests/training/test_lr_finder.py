"""The range test's arithmetic, on curves whose answer is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.training import lr_finder
from pipeline.training.lr_finder import propose, smooth
from tests.helpers import tiny


def test_the_steepest_fall_is_proposed() -> None:
    lrs = np.geomspace(1e-6, 1, 121)
    # A smooth step down around 1e-3, and divergence from 0.1 on.
    losses = 3 - 1.5 / (1 + np.exp(-4 * (np.log10(lrs) + 3))) + np.where(lrs > 0.1, 50 * (lrs - 0.1), 0)
    steepest, at_most = propose(lrs, losses)
    assert steepest == pytest.approx(1e-3, rel=0.15)
    assert at_most == pytest.approx(1e-2, rel=0.15)


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    lrs = np.geomspace(1e-4, 1, 9)
    losses = np.array([3, 2.9, 2.5, 1.5, 1.2, 1.3, 5, np.inf, np.nan])
    assert propose(lrs, losses) == pytest.approx((lrs[2], lrs[4] / 10), rel=1e-6)


def noisy_curve(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rates and smoothed losses with a noise of 0.1 nats a step, which fall around 1e-2 and diverge from 0.3 on."""
    lrs = np.geomspace(1e-6, 1, 100)
    fall = 1.5 / (1 + np.exp(-4 * (np.log10(lrs) + 2)))
    rise = np.where(lrs > 0.3, 30 * (lrs - 0.3), 0)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(len(lrs))
    return lrs, smooth(5 - fall + rise + noise)


def test_noise_at_the_start_is_not_taken_for_the_fall() -> None:
    proposed = np.array([propose(*noisy_curve(seed)) for seed in range(300)])
    assert proposed.min() > 1e-4
    assert proposed.max() < 0.3


@pytest.mark.parametrize("found", [(0.02, 0.003), (0.003, 0.02)])
def test_the_smaller_rate_is_proposed_for_the_images_of_the_first_epochs_steps(
    birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: tuple[float, float],
) -> None:
    monkeypatch.setattr(lr_finder, "propose", lambda *_: found)
    stages = "data.progressive=[{until_epoch: 1, image_px: 24, images_per_step: 6}]"
    assert tiny.do("lr-find", tmp_path, stages, "lr_find={lowest: 1e-4, highest: 0.1, steps: 20}") == 0
    said = capsys.readouterr()
    assert "lr-find  proposes optim.lr=0.003, or up to 0.02, for batches of 6: " in said.err
    result = json.loads(said.out)
    assert (result["lr"], result["lr_at_most"]) == (0.003, 0.02)


def test_smoothing_is_the_corrected_exponential_mean() -> None:
    losses, mean, expected = np.array([4.0, 2.0, 6.0, 1.0]), 0.0, []
    for count, loss in enumerate(losses, start=1):
        mean = 0.9 * mean + 0.1 * loss
        expected.append(mean / (1 - 0.9**count))
    assert smooth(losses) == pytest.approx(expected)


@pytest.mark.parametrize("finite", [0, 1])
def test_a_loss_that_is_never_finite_is_one_sentence(
    birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    finite: int,
) -> None:
    losses = iter([*[1.0] * finite, float("nan")])

    def diverged(*_: Any) -> torch.Tensor:
        return torch.tensor([next(losses), 0.0, 0.0], dtype=torch.float64)

    monkeypatch.setattr(lr_finder, "train_step", diverged)
    assert tiny.do("lr-find", tmp_path) == 2
    assert f"lr-find: the loss is not finite at step {finite + 1}" in capsys.readouterr().err
