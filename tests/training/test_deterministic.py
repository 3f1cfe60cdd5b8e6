"""`train.deterministic`: what a GPU has no deterministic algorithm for is replaced, or refused in one sentence."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.models.heads import pool_by_amax
from pipeline.training import phases, start
from pipeline.training.optimizer import build_optimizer, parameter_groups
from pipeline.training.setup import TrainingSetup
from pipeline.training.state import TrainState
from pipeline.training.step import StepSettings, train_step
from pipeline.training.weight_average import WeightAverage
from tests.helpers import tiny
from tests.helpers.findings import SINGLE
from tests.helpers.operations import Called


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
    monkeypatch.setattr(start, "_move_to_device", lambda *_: None)
    config = tiny.config(
        tmp_path, "model.pool=max", f"train.deterministic={deterministic}", "train.ema_decay=0.9"
    )
    setup = TrainingSetup(config, SINGLE)
    setup.ranks = dataclasses.replace(SINGLE, device=torch.device(device))
    state = start.build_state(setup, phases.first(config.optim), "fp32", pretrained=False).state
    for model in (state.model, state.eval_model):
        has_pool = any(isinstance(module, nn.AdaptiveMaxPool2d) for module in model.modules())
        assert has_pool == ((device, deterministic) != ("cuda", True))


# Of the operations that torch.use_deterministic_algorithms documents to raise on CUDA, those of images and of losses.
RAISING = {
    *(
        "_adaptive_avg_pool2d_backward",
        "adaptive_max_pool2d_backward",
        "avg_pool3d_backward",
        "bincount",
        "cumsum",
    ),
    *(
        "_embedding_bag_backward",
        "fractional_max_pool2d_backward",
        "grid_sampler_2d_backward",
        "histc",
        "kthvalue",
    ),
    *(
        "max_pool3d_with_indices_backward",
        "max_unpool2d",
        "median",
        "nll_loss2d_forward",
        "nll_loss2d_backward",
        "put_",
    ),
    *(
        "reflection_pad2d_backward",
        "replication_pad2d_backward",
        "scatter_reduce",
        "upsample_bicubic2d_backward",
    ),
    *("upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward", "upsample_linear1d_backward"),
}


@pytest.mark.parametrize("pool", ["avg", "gem", "max", "avgmax"])
@pytest.mark.parametrize(
    "way", ["mixup", "cutmix", "snapmix", "activation_crop", "activation_mask", "activation_swap"]
)
def test_a_step_calls_nothing_that_a_gpu_has_no_deterministic_algorithm_for(pool: str, way: str) -> None:
    config = ModelConfig.model_validate(
        {"name": "test_resnet", "pretrained": False, "mid_level_head": True, "dropout": 0.1}
        | ({} if pool == "avg" else {"pool": pool})
    )
    model, optim = build_model(config, 4)[0].train(), OptimConfig()
    groups = parameter_groups(model, optim, weight_decay=1e-4)
    optimizer = build_optimizer(groups, optim.resolved_phases[0], lr=0.1)
    average, scaler = WeightAverage(model, 0.9), torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, optimizer, scaler, average, phases.first(optim))
    mix = (MixConfig.model_validate({"name": way}),)
    settings = StepSettings(0, 0.1, mix, 1.0, 4, "fp32", SINGLE)
    row = torch.arange(7)
    batch = Batch(torch.randint(0, 256, (7, 3, 64, 64), dtype=torch.uint8), row % 4, row)

    def raising() -> set[str]:
        with Called() as called:
            train_step(state, state.model, batch, 7, phases.Rates(0.1, 0.9), settings)
        assert {"convolution_backward", "nll_loss_backward"} <= called.names
        return called.names & RAISING

    assert raising() == ({"adaptive_max_pool2d_backward"} if "max" in pool else set())
    pool_by_amax(model.backbone)
    assert raising() == set()
