"""Every parameter in its group, and steps that equal those worked by hand."""

from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor, nn

from pipeline.common.errors import ConfigError
from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.training.optimizer import (
    Optimizer,
    build_optimizer,
    carry_momentum,
    clip,
    parameter_groups,
    saved_order,
    set_rates,
    stages,
)


class Net(nn.Module):
    """A body and new layers, as a classifier has them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.head = nn.Linear(4, 2)

    @property
    def backbone(self) -> nn.Module:
        return self.body

    @property
    def new_layers(self) -> list[nn.Module]:
        return [self.head]


def network(name: str, **options: Any) -> Classifier:
    return build_model(ModelConfig(name=name, pretrained=False, **options), 3)[0]


def names_by_group(model: Any, config: OptimConfig) -> dict[tuple[float, float], set[str]]:
    """(learning rate multiplier, weight decay) -> names of parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config, weight_decay=config.weight_decay)
    found = {
        (group["lr_multiplier"], group["weight_decay"]): {names[id(p)] for p in group["params"]}
        for group in groups
    }
    assert len(found) == len(groups)
    return found


def test_body_and_head_with_and_without_decay_are_groups_of_their_own() -> None:
    assert names_by_group(Net(), OptimConfig(head_lr_multiplier=10, weight_decay=5e-4)) == {
        (1, 5e-4): {"body.0.weight"},
        (1, 0): {"body.0.bias", "body.1.weight", "body.1.bias"},
        (10, 5e-4): {"head.weight"},
        (10, 0): {"head.bias"},
    }


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_every_parameter_of_a_network_is_in_exactly_one_group(name: str, layer_decay: float) -> None:
    model = network(name)
    groups = parameter_groups(model, OptimConfig(layer_decay=layer_decay), weight_decay=0.1)
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(placed) == sorted(id(parameter) for parameter in model.parameters())
    for group in groups:
        if group["weight_decay"]:
            assert all(parameter.ndim > 1 for parameter in group["params"])


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "test_resnet",
        "swin_tiny_patch4_window7_224",
        "levit_128",
        "deit_tiny_distilled_patch16_224",
    ],
)
def test_the_weights_that_decay_are_those_of_timms_own_grouping(name: str) -> None:
    with torch.device("meta"):
        model = network(name)
    backbone: Any = model.backbone
    theirs = create_optimizer_v2(backbone, "sgd", lr=0.1, weight_decay=0.3)
    decay = {id(p): group["weight_decay"] for group in theirs.param_groups for p in group["params"]}
    ours = parameter_groups(model, OptimConfig(), weight_decay=0.3)
    assert {id(p): group["weight_decay"] for group in ours for p in group["params"]} == decay
    if hasattr(backbone, "pos_embed"):
        assert decay[id(backbone.pos_embed)] == decay[id(backbone.cls_token)] == 0


@pytest.mark.parametrize(
    "name", ["vit_base_patch14_reg4_dinov2", "convnext_base", "swin_tiny_patch4_window7_224"]
)
def test_layer_wise_decay_is_timms_for_transformers_and_convnext(name: str) -> None:
    with torch.device("meta"):
        model = network(name)
    backbone: Any = model.backbone
    config = OptimConfig(layer_decay=0.7)
    groups = parameter_groups(model, config, weight_decay=0.05)
    ours = {
        id(p): (group["lr_multiplier"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    no_decay = getattr(backbone, "no_weight_decay", set)()
    theirs = param_groups_layer_decay(
        backbone, weight_decay=0.05, layer_decay=0.7, no_weight_decay_list=no_decay
    )
    expected = {
        id(p): (group["lr_scale"], group["weight_decay"]) for group in theirs for p in group["params"]
    }
    for place, (multiplier, decay) in expected.items():
        assert ours[place] == (pytest.approx(multiplier), decay)
    assert ours.keys() == expected.keys()


def test_layer_wise_decay_falls_from_the_head_to_the_stem() -> None:
    """The same learning rates as timm's own grouping gives, and those that can be told by hand."""
    model = network("resnet18")
    groups = parameter_groups(model, OptimConfig(layer_decay=0.5, head_lr_multiplier=3), weight_decay=0.0)
    ours = {id(p): group["lr_multiplier"] for group in groups for p in group["params"]}
    backbone: Any = model.backbone
    theirs = {
        id(p): group["lr_scale"]
        for group in param_groups_layer_decay(backbone, layer_decay=0.5)
        for p in group["params"]
    }
    for name, parameter in backbone.named_parameters():
        expected = 3 if name.startswith("fc.") else theirs[id(parameter)]
        assert ours[id(parameter)] == pytest.approx(expected), name
    assert ours[id(backbone.layer4[1].conv1.weight)] == 0.5
    assert ours[id(backbone.layer4[0].conv1.weight)] == 0.25
    assert ours[id(backbone.conv1.weight)] == 0.5**9


def test_new_layers_are_the_heads_and_a_pooling_that_learns() -> None:
    found = names_by_group(
        network("test_resnet", mid_level_head=True, pool="gem"), OptimConfig(head_lr_multiplier=7)
    )
    new = found[7, 5e-4] | found[7, 0]
    assert new == {
        *("backbone.fc.weight", "backbone.fc.bias", "backbone.global_pool.p"),
        *("mid_head.conv.weight", "mid_head.conv.bias", "mid_head.fc.weight", "mid_head.fc.bias"),
    }


def test_stages_go_from_the_stem_to_the_head() -> None:
    model = network("resnet18")
    found = stages(model)
    backbone: Any = model.backbone
    assert len(found) == 6
    assert found[0] == [backbone.conv1, backbone.bn1]
    assert backbone.layer1[0].conv1 in found[1]
    assert found[5] == [backbone.fc]


def optimizer_of(module: Any, config: OptimConfig) -> Optimizer:
    module.new_layers, module.backbone = [], nn.Identity()
    (phase,) = config.resolved_phases
    groups = parameter_groups(module, config, weight_decay=config.weight_decay)
    return build_optimizer(groups, phase, lr=config.lr)


def steps_of(parameter: Tensor, gradients: list[Tensor], config: OptimConfig, rates: list[float]) -> Tensor:
    """Steps of the optimizer on one parameter, with given gradients and learning rates."""
    module = nn.Module()
    module.weight = nn.Parameter(parameter.clone())
    optimizer = optimizer_of(module, config)
    for gradient, lr in zip(gradients, rates, strict=True):
        set_rates(optimizer, lr, config.momentum)
        module.weight.grad = gradient.clone()
        optimizer.step()
    return module.weight.detach()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_two_steps_equal_those_by_hand(shape: tuple[int, ...], nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, g1, g2 = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    config = OptimConfig(momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    decay = 0.01 if len(shape) > 1 else 0.0

    velocity = g1 + decay * weight
    step = g1 + decay * weight + 0.9 * velocity if nesterov else velocity
    first = weight - 0.5 * step
    velocity = 0.9 * velocity + g2 + decay * first
    step = g2 + decay * first + 0.9 * velocity if nesterov else velocity
    second = first - 0.25 * step

    torch.testing.assert_close(steps_of(weight, [g1], config, [0.5]), first)
    torch.testing.assert_close(steps_of(weight, [g1, g2], config, [0.5, 0.25]), second)


def test_without_momentum_a_step_is_the_gradient() -> None:
    weight, gradient = torch.ones(2, 2), torch.full((2, 2), 3.0)
    config = OptimConfig(momentum=0, nesterov=True, weight_decay=0)
    torch.testing.assert_close(steps_of(weight, [gradient], config, [0.1]), torch.full((2, 2), 0.7))


def test_every_group_follows_the_schedule_by_its_multiplier() -> None:
    config = OptimConfig(head_lr_multiplier=10)
    groups = parameter_groups(Net(), config, weight_decay=0.1)  # type: ignore[arg-type]
    optimizer = build_optimizer(groups, config.resolved_phases[0], lr=1.0)
    for lr, momentum in ((0.3, 0.0), (0.02, 0.9)):
        set_rates(optimizer, lr, momentum)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr, lr, 10 * lr, 10 * lr])
        assert [group["momentum"] for group in optimizer.param_groups] == [momentum] * 4


@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "adadelta", "adam", "adamw", "lamb", "nadamw"])
def test_the_solvers_take_the_steps_of_their_own_implementations(name: str) -> None:
    """PyTorch's for the names that it has, timm's for the others."""
    generator = torch.Generator().manual_seed(0)
    weight, g1, g2 = (torch.randn((2, 3), generator=generator) for _ in range(3))
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.05)
    theirs = nn.Parameter(weight.clone())
    of_torch = {cls.__name__.lower(): cls for cls in vars(torch.optim).values() if isinstance(cls, type)}
    if name in of_torch:
        reference = of_torch[name]([theirs], lr=0.01, weight_decay=0.05)
    else:
        reference = create_optimizer_v2([theirs], name, lr=0.01, weight_decay=0.05)
    for gradient in (g1, g2):
        theirs.grad = gradient.clone()
        reference.step()
    ours = steps_of(weight, [g1, g2], config, [0.01, 0.01])
    assert not torch.equal(ours, weight)
    torch.testing.assert_close(ours, theirs.detach())


def test_momentum_is_the_first_beta_of_the_adam_family_and_options_are_handed_on() -> None:
    config = OptimConfig(name="adamw", options={"betas": (0.7, 0.95), "eps": 1e-6}, momentum=0.7)
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(2, 2))
    optimizer = optimizer_of(module, config)
    set_rates(optimizer, 0.1, 0.7)
    assert optimizer.param_groups[0]["betas"] == (0.7, 0.95)
    assert optimizer.param_groups[0]["eps"] == 1e-6
    set_rates(optimizer, 0.1, 0.5)  # a schedule of the momentum
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.95)


@pytest.mark.parametrize("name", ["sgd", "sgdw", "sgdp", "lars", "madgrad", "nesterov", "muon"])
def test_every_optimizer_with_a_momentum_has_the_configurations(name: str) -> None:
    config = OptimConfig(name=name, momentum=0.6)
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(2, 2))
    optimizer = optimizer_of(module, config)
    set_rates(optimizer, 0.1, 0.6)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.6]


def test_sgdw_without_nesterov_takes_the_steps_of_plain_momentum() -> None:
    weight, g1, g2 = torch.ones(2, 2), torch.full((2, 2), 0.5), torch.full((2, 2), -1.0)
    for nesterov in (True, False):
        common: dict[str, Any] = {"momentum": 0.6, "nesterov": nesterov, "weight_decay": 0}
        ours = steps_of(weight, [g1, g2], OptimConfig(name="sgdw", **common), [0.1, 0.1])
        reference = steps_of(weight, [g1, g2], OptimConfig(name="sgd", **common), [0.1, 0.1])
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("adamw", {"betas": (0.8, 0.95)}, r"beta1 is momentum=0\.9 here; set momentum=0\.8"),
        ("adan", {"betas": (0.98, 0.92, 0.99)}, r"beta1 is momentum=0\.9 here"),
        ("adam", {"weight_decay": 0.3}, r"weight_decay is 0\.0005 here"),
        ("sgdw", {"momentum": 0.5}, r"momentum is 0\.9 here"),
        ("sgd", {"nesterov": False}, r"nesterov is True here"),
        ("lamb", {"layer_decay": 0.7}, r"layer_decay has no effect"),
    ],
)
def test_an_option_that_another_key_would_overrule_is_refused(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ConfigError, match=sentence):
        optimizer_of(module, OptimConfig(name=name, options=options))


def test_rmsprop_has_the_momentum_of_its_options() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(2, 2))
    for options, momentum in (({}, 0), ({"momentum": 0.4}, 0.4)):
        optimizer = optimizer_of(module, OptimConfig(name="rmsprop", options=options))
        set_rates(optimizer, 0.1, 0.9)
        assert optimizer.param_groups[0]["momentum"] == momentum


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [("adamm", {}, "optimizer adamm"), ("sgd", {"beta": 1}, "beta"), ("adam", {"eps": -1.0}, "epsilon")],
)
def test_an_optimizer_that_does_not_exist_or_take_an_option_is_named(
    name: str, options: dict[str, float], sentence: str
) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ConfigError, match=sentence):
        optimizer_of(module, OptimConfig(name=name, options=options))


@pytest.mark.parametrize(("max_norm", "scale"), [(None, 1.0), (10.0, 1.0), (2.5, 0.5)])
def test_clipping_scales_all_gradients_by_their_common_norm(max_norm: float | None, scale: float) -> None:
    module = nn.Module()
    module.a, module.b = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1))
    optimizer = optimizer_of(module, OptimConfig())
    module.a.grad, module.b.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    assert clip(optimizer, max_norm).item() == pytest.approx(5.0)
    assert (module.a.grad.item(), module.b.grad.item()) == pytest.approx((3 * scale, 4 * scale), rel=1e-5)


@pytest.mark.parametrize("before", ["sgd", "adam"])
def test_a_momentum_carried_over_is_that_of_the_gradients_mean(before: str) -> None:
    """Under a constant gradient g, long enough, SGD's buffer is g / (1 - momentum)."""
    gradient = torch.tensor([[0.5, -2.0]])
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(1, 2))
    first = optimizer_of(module, OptimConfig(name=before, weight_decay=0))
    for _ in range(400):
        module.weight.grad = gradient.clone()
        first.step()
    second = optimizer_of(module, OptimConfig(weight_decay=0))
    carry_momentum(first, second, 0.8)
    buffer = second.state[module.weight]["momentum_buffer"]
    torch.testing.assert_close(buffer, gradient / 0.2, rtol=1e-4, atol=1e-6)


def test_the_moments_of_version_0_1_are_found_under_their_own_parameters() -> None:
    """It grouped by dimensions alone, so that a transformer's tokens stood among the weights that decay."""
    model = network("test_vit")
    config = OptimConfig(name="adamw")
    optimizer = build_optimizer(
        parameter_groups(model, config, weight_decay=0.1), config.resolved_phases[0], lr=1.0
    )
    before = [[p for p in model.parameters() if p.ndim == 1], [p for p in model.parameters() if p.ndim > 1]]
    saved = [{"params": group} for group in before]
    assert [len(group["params"]) for group in optimizer.param_groups] != [*map(len, before)]
    found = saved_order(model, optimizer, saved)
    assert [*map(id, found)] == [id(parameter) for group in before for parameter in group]
    now = [{"params": group["params"]} for group in optimizer.param_groups]
    own = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert [*map(id, saved_order(model, optimizer, now))] == own
