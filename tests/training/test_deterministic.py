"""`train.deterministic`: what a GPU has no deterministic algorithm for is replaced, or refused in one sentence."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.classifier import Classifier
from pipeline.training import phases
from pipeline.training.setup import TrainingSetup
from tests.helpers import tiny
from tests.helpers.findings import SINGLE


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_an_operation_without_a_deterministic_algorithm_is_one_sentence_before_anything_is_written(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    normalised = Classifier.normalised

    def put(images: Tensor) -> Tensor:  # which has none, on the CPU too
        return images.clone().put_(torch.tensor([0]), torch.zeros(1))

    def with_put(self: Classifier, images: Tensor) -> Tensor:
        found = normalised(self, images)
        if way == "forward":
            return put(found)
        found.requires_grad_().register_hook(put)
        return found

    monkeypatch.setattr(Classifier, "normalised", with_put)
    assert tiny.do("train", tmp_path, "train.deterministic=true") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "train.deterministic: test_resnet has an operation without a deterministic algorithm" in said
    assert "put_ does not have a deterministic implementation" in said
    assert "set train.deterministic=false, or take another model" in said
    assert "data.image_px" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("device", "deterministic"), [("cuda", True), ("cuda", False), ("cpu", True)])
def test_the_maximum_is_pooled_by_amax_on_a_gpu_where_it_has_to_be_deterministic(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, deterministic: bool
) -> None:
    # There is no GPU to move the model to; nothing else of its making needs one.
    monkeypatch.setattr(TrainingSetup, "_move_to_device", lambda *_: None)
    config = tiny.config(
        tmp_path, "model.pool=max", f"train.deterministic={deterministic}", "train.ema_decay=0.9"
    )
    setup = TrainingSetup(config, SINGLE)
    setup.ranks = dataclasses.replace(SINGLE, device=torch.device(device))
    state = setup.build_state(phases.first(config.optim), "fp32", pretrained=False).state
    for model in (state.model, state.eval_model):
        has_pool = any(isinstance(module, nn.AdaptiveMaxPool2d) for module in model.modules())
        assert has_pool == ((device, deterministic) != ("cuda", True))
