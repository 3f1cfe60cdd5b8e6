"""Every parameter in its group, and steps that equal those worked by hand."""

import pytest
import timm
import torch
from torch import Tensor, nn

from pipeline import optim
from pipeline.config import OptimConfig


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.head = nn.Linear(4, 2)


def names_by_group(model: nn.Module, head: nn.Module, config: OptimConfig) -> dict[tuple[float, float], set]:
    """(learning rate multiplier, weight decay) -> names of parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optim.parameter_groups(model, head, config)
    found = {
        (group["lr_multiplier"], group["weight_decay"]): {names[id(p)] for p in group["params"]}
        for group in groups
    }
    assert len(found) == len(groups)
    return found


def test_body_and_head_with_and_without_decay_are_groups_of_their_own() -> None:
    net = Net()
    assert names_by_group(net, net.head, OptimConfig(head_lr_multiplier=10, weight_decay=5e-4)) == {
        (1, 5e-4): {"body.0.weight"},
        (1, 0): {"body.0.bias", "body.1.weight", "body.1.bias"},
        (10, 5e-4): {"head.weight"},
        (10, 0): {"head.bias"},
    }


def test_frozen_parameters_are_in_no_group_and_empty_groups_are_left_out() -> None:
    net = Net()
    net.body.requires_grad_(False)
    assert names_by_group(net, net.head, OptimConfig(head_lr_multiplier=2, weight_decay=0.1)) == {
        (2, 0.1): {"head.weight"},
        (2, 0): {"head.bias"},
    }


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_every_parameter_of_a_network_is_in_exactly_one_group(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    groups = optim.parameter_groups(model, model.get_classifier(), OptimConfig())
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(placed) == sorted(id(parameter) for parameter in model.parameters())
    for group in groups:
        decays = {parameter.ndim > 1 for parameter in group["params"]}
        assert decays == {group["weight_decay"] > 0}


def steps_of_sgd(
    parameter: Tensor, gradients: list[Tensor], config: OptimConfig, rates: list[float]
) -> Tensor:
    """Steps of the optimizer on one parameter, with given gradients and learning rates."""
    module = nn.Module()
    module.weight = nn.Parameter(parameter.clone())
    groups = optim.parameter_groups(module, nn.Identity(), config)
    optimizer = optim.sgd(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    for gradient, lr in zip(gradients, rates, strict=True):
        optim.set_lr(optimizer, lr)
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

    torch.testing.assert_close(steps_of_sgd(weight, [g1], config, [0.5]), first)
    torch.testing.assert_close(steps_of_sgd(weight, [g1, g2], config, [0.5, 0.25]), second)


def test_without_momentum_a_step_is_the_gradient() -> None:
    weight, gradient = torch.ones(2, 2), torch.full((2, 2), 3.0)
    config = OptimConfig(momentum=0, nesterov=True, weight_decay=0)
    torch.testing.assert_close(steps_of_sgd(weight, [gradient], config, [0.1]), torch.full((2, 2), 0.7))


def test_every_group_follows_the_schedule_by_its_multiplier() -> None:
    net = Net()
    groups = optim.parameter_groups(net, net.head, OptimConfig(head_lr_multiplier=10))
    optimizer = optim.sgd(groups, lr=1.0, momentum=0.9, nesterov=True)
    for lr in (0.3, 0.02):
        optim.set_lr(optimizer, lr)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr, lr, 10 * lr, 10 * lr])
