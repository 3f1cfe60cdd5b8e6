"""Checks that train: memory, a repeatable step, the bottleneck."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.data.transforms import Augmentation
from pipeline.doctor import data, training
from pipeline.models.classifier import Classifier
from pipeline.training import auto_batch_size, step
from tests.helpers.findings import Findings, states


def test_a_batch_that_does_not_fit_is_a_no_go_that_says_what_does(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_batch_size, "largest_that_fits", lambda *_: 3)
    findings = ask(go=False)
    assert findings["memory"]["state"] == "no-go"
    assert "optim.batch_size=3 optim.effective_batch_size=8" in findings["memory"]["next"]
    assert {"first step", "speed"} <= states(findings, "not applicable")
    findings = ask("optim.batch_size=auto", "optim.effective_batch_size=8", go=True)
    assert findings["memory"]["numbers"]["batch_size"] == 3


def test_a_batch_of_evaluation_that_does_not_fit_is_a_no_go_that_says_what_does(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Classifier.forward

    def limited(model: Classifier, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 4:
            raise torch.OutOfMemoryError("simulated")
        return forward(model, images)

    monkeypatch.setattr(auto_batch_size, "largest_that_fits", lambda *_: 3)
    monkeypatch.setattr(Classifier, "forward", limited)
    auto = "optim.batch_size=auto", "optim.effective_batch_size=8"
    memory = ask(*auto, "eval.batch_size=16", go=False)["memory"]
    assert memory["state"] == "no-go"
    assert "a batch of 16 images of 32 px" in memory["figures"]
    assert "set eval.batch_size=4, which was tried" in memory["next"]


def test_a_step_that_is_not_repeatable_is_a_no_go(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step.torch, "manual_seed", lambda _: None)
    assert ask("model.dropout=0.5", go=False)["first step"]["state"] == "no-go"


def test_a_loader_slower_than_the_step_is_a_warning(
    ask: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = Augmentation.__call__

    def slow(self: Augmentation, picture: Any, epoch: int, index: int) -> Any:
        time.sleep(0.1)  # no step of the tiny model is as slow, on whatever machine
        return augment(self, picture, epoch, index)

    monkeypatch.setattr(Augmentation, "__call__", slow)
    monkeypatch.setattr(data, "COMPARED_CROPS", 2)
    monkeypatch.setattr(training, "MOST_STEPS", 2)
    speed = ask("optim.batch_size=4", go=True)["speed"]
    assert speed["state"] == "warning"
    assert "the loader is the bottleneck" in speed["figures"]


def test_throughput_of_loader_and_step() -> None:
    assert training.throughput(30.0, 60.0, workers=2) == 30
    assert training.throughput(30.0, 60.0, workers=0) == pytest.approx(20)
