"""What is frozen is computed on the weights, in the runs for which that is right."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.models.build import build_model
from pipeline.models.precision import Precision
from pipeline.training.freezing import FreezeSchedule, learn_fast
from tests.helpers import tiny

FROZEN = "model.freeze_batchnorm=true"


def normalised_maps(tmp: Path, precision: Precision, *words: str, epoch: int = 0) -> int:
    """How many batch norms a training pass computes over feature maps."""
    config = tiny.config(tmp, *words)
    model, _ = build_model(config.model, 3)
    learn_fast(config, model, precision)
    FreezeSchedule(config, model).apply(epoch)
    with torch.profiler.profile() as profile:
        model(torch.zeros((2, 3, 32, 32), dtype=torch.uint8))
    return sum(event.count for event in profile.key_averages() if event.key == "aten::batch_norm")


def test_frozen_norms_cost_no_pass_over_feature_maps(tmp_path: Path) -> None:
    learning = normalised_maps(tmp_path, "fp32")
    assert learning > 0
    assert normalised_maps(tmp_path, "fp32", FROZEN) == 0
    # Whose shards are gathered one by one: a convolution does not have its norm's weights.
    assert normalised_maps(tmp_path, "fp32", FROZEN, "distributed.shard=full") == learning


@pytest.mark.parametrize(("name", "of_stage"), [("xcit_nano_12_p16_224", 4), ("visformer_tiny", 2)])
def test_weights_of_the_network_itself_freeze_no_norms_of_other_stages(
    tmp_path: Path, name: str, of_stage: int
) -> None:
    """A class token, or an embedding of positions, belongs to the backbone, which has all norms in it."""
    config = tiny.config(tmp_path, f"model.name={name}", "optim.frozen_stages=1")
    model, _ = build_model(config.model, 3)
    FreezeSchedule(config, model).apply(0)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    frozen = [norm for norm in norms if not norm.training]
    assert len(frozen) == of_stage < len(norms)
    assert not any(parameter.requires_grad for norm in frozen for parameter in norm.parameters())


def test_norms_of_frozen_stages_are_computed_on_weights_until_they_thaw(tmp_path: Path) -> None:
    stages = ["optim.frozen_stages=2", "optim.unfreeze_epoch=1"]
    learning = normalised_maps(tmp_path, "fp32")
    assert 0 < normalised_maps(tmp_path, "fp32", *stages) < learning
    assert normalised_maps(tmp_path, "fp32", *stages, epoch=1) == learning


@pytest.mark.parametrize(("precision", "expected"), [("fp32", 0), ("bf16", 4)])
def test_slow_depthwise_convolutions_are_changed_for_bf16_alone(
    tmp_path: Path, precision: Precision, expected: int
) -> None:
    config = tiny.config(tmp_path, "model.name=mobilenetv2_035")
    model, _ = build_model(config.model, 3)
    learn_fast(config, model, precision)
    changed = [m for m in model.modules() if isinstance(m, nn.Conv2d) and type(m) is not nn.Conv2d]
    assert len(changed) == expected


def test_a_run_with_frozen_norms_goes_on_to_the_bit(birds: Path, tmp_path: Path) -> None:
    words = [FROZEN, "train.ema_decay=0.9"]
    assert tiny.do("train", tmp_path, *words, "run.name=whole", "train.max_steps=6") == 0
    for steps in (2, 6):
        assert tiny.do("train", tmp_path, *words, "run.name=parts", f"train.max_steps={steps}") == 0
    whole, parts = (tmp_path / f"runs/{name}/checkpoints/last.pt" for name in ("whole", "parts"))
    assert tiny.same_weights(whole, parts)
