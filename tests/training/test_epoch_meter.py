"""What an epoch counts."""

import numpy as np
import pytest
import torch

from pipeline.distributed.process_group import Ranks
from pipeline.training.epoch_meter import EpochMeter, NotFinite
from pipeline.training.state import Totals

ALONE = Ranks.single(torch.device("cpu"))


def sums(loss: float, correct: float, norm: float, skipped: bool = False) -> torch.Tensor:
    return torch.tensor([loss, correct, norm, skipped], dtype=torch.float64)


def test_sums_go_on_from_those_of_an_earlier_process() -> None:
    meter = EpochMeter(Totals(10.0, 3.0, 2.0, 8, 2), ALONE)
    meter.add(3, np.arange(4), sums(2.0, 1.0, 0.5))
    meter.add(4, np.arange(3), sums(1.5, 2.0, 0.25))
    assert meter.last() == {"loss": 0.5, "grad_norm": 0.25}
    assert meter.totals() == Totals(13.5, 6.0, 2.75, 15, 4)
    assert meter.totals() == Totals(13.5, 6.0, 2.75, 15, 4)  # asking changes nothing


def test_a_skipped_step_has_no_gradient_norm_and_does_not_spoil_the_epochs() -> None:
    meter = EpochMeter(Totals(10.0, 3.0, 2.0, 8, 2, 1), ALONE)
    meter.add(3, np.arange(4), sums(2.0, 1.0, 0.0, skipped=True))
    assert np.isnan(meter.last()["grad_norm"])
    meter.add(4, np.arange(4), sums(2.0, 1.0, 0.5))
    assert meter.last() == {"loss": 0.5, "grad_norm": 0.5}
    totals = meter.totals()
    assert (totals.steps, totals.skipped_steps, totals.mean_gradient_norm) == (4, 2, 1.25)
    assert np.isnan(Totals(steps=2, skipped_steps=2).mean_gradient_norm)


def test_a_pause_does_not_count_as_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 9.0, 10.0])  # made; paused from 1 to 9; asked
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meter = EpochMeter(Totals(), ALONE)
    meter.add(1, np.arange(6), sums(1.0, 1.0, 1.0))
    with meter.paused():
        pass
    assert meter.speed() == {"images_per_s": 3.0, "data_wait": 0.0}


def test_a_step_that_is_not_timed_counts_for_the_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 9.0, 11.0])  # made; paused from 1 to 9; asked
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    meter = EpochMeter(Totals(), ALONE)
    with meter.paused():
        meter.add(1, np.arange(6), sums(1.0, 1.0, 1.0), timed=False)
    assert meter.speed() == {"images_per_s": None, "data_wait": None}
    meter.add(2, np.arange(5), sums(1.0, 1.0, 1.0))
    assert meter.speed() == {"images_per_s": 5 / 3, "data_wait": 0.0}
    assert meter.totals().seen == 11


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_loss_that_is_not_finite_is_found_with_its_images(bad: float) -> None:
    meter = EpochMeter(Totals(), ALONE)
    meter.add(1, np.array([1, 2]), sums(1.0, 0.0, 0.0))
    meter.add(2, np.array([7, 9]), sums(bad, 0.0, 0.0))
    meter.add(3, np.array([3, 4]), sums(bad, 0.0, 0.0))
    with pytest.raises(NotFinite) as found:
        meter.totals()
    assert found.value.step == 2
    assert found.value.draws.tolist() == [7, 9]


def test_waiting_yields_all_batches_and_counts_the_wait() -> None:
    meter = EpochMeter(Totals(), ALONE)
    assert list(meter.timed(iter([1, 2, 3]))) == [1, 2, 3]
    assert meter.speed() == {"images_per_s": None, "data_wait": None}
    meter.add(1, np.arange(6), sums(1.0, 1.0, 1.0))
    speed = meter.speed()
    assert speed["data_wait"] is not None and 0 < speed["data_wait"] <= 1
    assert speed["images_per_s"] is not None and speed["images_per_s"] > 0
