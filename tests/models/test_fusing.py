"""Fused convolutions give the same logits and features, or are not fused."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.model import ModelConfig
from pipeline.inference.predict import last_layer_inputs
from pipeline.models import fusing
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.models.folding import fold_batchnorms
from pipeline.models.fusing import FusedClassifier, FusedConvolution, fuse_convolutions
from pipeline.models.precision import autocast

IMAGE_PX = 64
CPU = torch.device("cpu")


def folded(name: str, *, mid_level_head: bool = False, pool: str = "avg") -> Classifier:
    """A model with drawn weights, and batch norms that were no identity when they were folded."""
    torch.manual_seed(0)
    settings = ModelConfig.model_validate(
        {"name": name, "pretrained": False, "mid_level_head": mid_level_head, "pool": pool}
    )
    model = build_model(settings, 5)[0].train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randint(0, 256, (8, 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8))
    return fold_batchnorms(model.eval(), IMAGE_PX).to(memory_format=torch.channels_last)


def drawn_images(images: int) -> Tensor:
    """Of other numbers than those with which a fused form is checked."""
    generator = torch.Generator().manual_seed(7)
    shape = (images, IMAGE_PX, IMAGE_PX, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)


def answers(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and features."""
    with torch.no_grad(), last_layer_inputs(model) as inputs:
        return model(images), inputs[0]


def fused_convolutions(fused: FusedClassifier) -> int:
    return sum(isinstance(module, FusedConvolution) for module in fused.modules())


@pytest.mark.parametrize(
    ("name", "mid_level_head", "pool", "convolutions"),
    [
        ("resnet10t", False, "avg", 14),
        ("resnet10t", True, "gem", 15),
        ("plumage/resnet18", False, "avg", 20),
        ("tf_efficientnet_lite0", False, "avg", 49),  # pads unequally
        ("mobilenetv2_100", False, "avg", 52),
        ("mobilenetv3_small_050", False, "avg", 53),
        ("densenet121", False, "avg", 120),
        ("convnext_atto", False, "avg", 40),
    ],
)
def test_logits_and_features_stay_within_a_hundred_thousandth(
    name: str, mid_level_head: bool, pool: str, convolutions: int
) -> None:
    model = folded(name, mid_level_head=mid_level_head, pool=pool)
    fused = fuse_convolutions(model, IMAGE_PX, "fp32")
    assert fused is not None
    assert fused_convolutions(fused) == convolutions
    for images in (drawn_images(1), drawn_images(5), drawn_images(2).contiguous()):  # the last: by channels
        logits, features = answers(model, images)
        with torch.inference_mode():
            got, got_features = fused(images)
        torch.testing.assert_close(got, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
        torch.testing.assert_close(got_features, features, rtol=0, atol=1e-5 * float(features.abs().max()))


def test_in_bfloat16_logits_are_as_near_to_those_of_float32() -> None:
    model = folded("mobilenetv2_100")
    fused = fuse_convolutions(model, IMAGE_PX, "bf16")
    assert fused is not None
    images = drawn_images(16)
    exact, _ = answers(model, images)
    with torch.inference_mode(), autocast(CPU, "bf16"):
        error = (model(images) - exact).square().mean().sqrt()
        logits, features = fused(images)
    assert (logits.dtype, features.dtype) == (torch.float32, torch.float32)
    assert 0 < (logits - exact).square().mean().sqrt() <= 1.5 * error


def test_a_network_whose_code_is_no_graph_is_not_fused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.conv(images)
            return self.fc((maps if maps.mean() > 0 else -maps).mean((2, 3)))  # type: ignore[no-any-return]

        def get_classifier(self) -> nn.Module:
            return self.fc

    model = Classifier(Branching(), (0.5,) * 3, (0.5,) * 3).eval()
    assert fuse_convolutions(model, IMAGE_PX, "fp32") is None


def test_a_network_whose_logits_would_change_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = folded("mobilenetv2_100")
    monkeypatch.setitem(fusing.ACTIVATIONS, nn.ReLU6, ("hardtanh", [0.0, 3.0]))
    assert fuse_convolutions(model, IMAGE_PX, "fp32") is None
    assert fuse_convolutions(model, IMAGE_PX, "bf16") is None


def test_without_the_operations_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = folded("resnet10t")
    monkeypatch.setattr(fusing, "OPERATIONS", object())
    assert fuse_convolutions(model, IMAGE_PX, "fp32") is None


def test_images_are_normalised_to_the_same_bits() -> None:
    model = folded("resnet10t")
    fused = fuse_convolutions(model, IMAGE_PX, "fp32")
    assert fused is not None
    images, graph = drawn_images(2), fused.graph
    normalised = (images.float() - graph.get_buffer("mean")) / graph.get_buffer("std")
    assert torch.equal(normalised, model.normalised(images))


def test_the_model_itself_is_left_as_it_was() -> None:
    model = folded("resnet10t")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    fuse_convolutions(model, IMAGE_PX, "fp32")
    assert list(model.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model(drawn_images(1)).requires_grad
