"""GeM pooling and the mid-level head."""

from typing import Any

import pytest
import timm
import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import nn

from pipeline.common.errors import ConfigError
from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.models.heads import GeM, pool_by_amax


def network(**options: Any) -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelConfig(pretrained=False, **options), 5)[0]


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_gem_is_the_generalised_mean_between_mean_and_maximum() -> None:
    features = torch.rand(2, 4, 3, 3) + 0.1
    gem = GeM(nn.Flatten())
    torch.testing.assert_close(gem(features), (features**3).mean((2, 3)) ** (1 / 3))
    with torch.no_grad():
        gem.p.fill_(1)
    torch.testing.assert_close(gem(features), features.mean((2, 3)))
    with torch.no_grad():
        gem.p.fill_(200)
    torch.testing.assert_close(gem(features), features.amax((2, 3)), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_gem_takes_the_place_of_the_pooling_and_learns(name: str) -> None:
    model = network(name=name, pool="gem")
    model(images()).sum().backward()
    (gem,) = (module for module in model.modules() if isinstance(module, GeM))
    assert gem.p.grad is not None
    assert gem.p.grad.abs().item() > 0


def test_a_network_without_a_feature_map_has_no_gem() -> None:
    with pytest.raises(ConfigError, match=r"model\.pool: gem needs a feature map"):
        network(name="test_vit", pool="gem")


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_other_poolings_are_timms(pool: str) -> None:
    model, plain = network(name="test_resnet", pool=pool), network(name="test_resnet")
    reference = timm.create_model("test_resnet", num_classes=5, global_pool=pool)
    reference.load_state_dict(plain.backbone.state_dict())
    model.load_state_dict(plain.state_dict())
    x = (images() - model.mean) / model.std
    torch.testing.assert_close(model.eval()(images()), reference.eval()(x))


@pytest.mark.parametrize(
    "chosen",
    [
        {"name": "test_resnet", "pool": "max"},
        {"name": "test_resnet", "pool": "avgmax"},
        {"name": "test_resnet", "options": {"global_pool": "catavgmax"}},
        {"name": "plumage/resnet18", "pool": "max"},
        {"name": "plumage/resnet18", "pool": "avgmax"},
    ],
)
def test_pooling_by_amax_gives_the_same_values_and_gradients(chosen: dict[str, Any]) -> None:
    model, by_amax = network(**chosen), network(**chosen)
    pool_by_amax(by_amax.backbone)
    assert not [module for module in by_amax.modules() if isinstance(module, nn.AdaptiveMaxPool2d)]
    assert model.state_dict().keys() == by_amax.state_dict().keys()
    logits = [each.eval()(images()) for each in (model, by_amax)]
    assert torch.equal(*logits)
    for each in (model, by_amax):
        each.train()(images()).square().sum().backward()
    pairs = zip(model.parameters(), by_amax.parameters(), strict=True)
    for one, other in pairs:
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_equal_maxima_share_the_gradient_when_pooled_by_amax() -> None:
    pool = SelectAdaptivePool2d(pool_type="max", flatten=True)
    features = torch.tensor([[[[1.0, 3.0], [3.0, 2.0]]]], requires_grad=True)
    pool_by_amax(pool)
    pool(features).sum().backward()
    assert features.grad is not None
    assert features.grad.tolist() == [[[[0.0, 0.5], [0.5, 0.0]]]]


def test_dropout_and_stochastic_depth_reach_the_network() -> None:
    model: Any = network(name="test_resnet", dropout=0.3, stochastic_depth=0.2)
    assert model.backbone.drop_rate == 0.3
    rates = [getattr(module, "drop_prob", 0) for module in model.modules()]
    assert max(rates) == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv2_100"])
def test_the_mid_level_head_adds_logits_and_leaves_the_backbones_as_they_are(name: str) -> None:
    model, plain = network(name=name, mid_level_head=True), network(name=name)
    model.backbone.load_state_dict(plain.backbone.state_dict())
    both = model.train()(images())
    assert both.shape == (2, 3, 5)
    assert plain.train()(images()).shape == (1, 3, 5)
    with torch.no_grad():
        model.load_state_dict(plain.state_dict(), strict=False)
        heads = model.eval()._heads((images() - model.mean) / model.std)
        torch.testing.assert_close(heads[0], plain.eval()(images()))
        torch.testing.assert_close(model(images()), heads.mean(0))


def test_the_mid_level_heads_gradient_stops_at_the_backbone() -> None:
    model = network(name="test_resnet", mid_level_head=True)
    model.train()(images())[1].sum().backward()
    assert all(
        parameter.grad is None or not parameter.grad.any() for parameter in model.backbone.parameters()
    )
    assert model.mid_head is not None
    assert all(parameter.grad is not None for parameter in model.mid_head.parameters())


def test_it_takes_the_maximum_over_places() -> None:
    model = network(name="test_resnet", mid_level_head=True)
    assert model.mid_head is not None
    channels = model.mid_head.conv.in_channels
    features = torch.zeros(1, channels, 4, 4)
    features[0, :, 2, 1] = torch.rand(channels)
    moved = torch.roll(features, (1, 2), (2, 3))
    torch.testing.assert_close(model.mid_head(features), model.mid_head(moved))
