"""Frozen batch norms computed on weights give the same logits and gradients; others are left alone."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier, freeze_batchnorm
from pipeline.models.frozen_norms import merge_frozen_norms
from pipeline.models.precision import autocast

IMAGE_PX = 64
CPU = torch.device("cpu")


def drawn_images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8)


def with_statistics(model: Classifier) -> Classifier:
    """The model with batch norms that are no identity."""
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(drawn_images(8))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def built(name: str, *, mid_level_head: bool = False) -> Classifier:
    torch.manual_seed(0)
    config = ModelConfig(name=name, pretrained=False, mid_level_head=mid_level_head)
    return with_statistics(build_model(config, 5)[0])


def logits_and_gradients(model: Classifier, images: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad()
    logits = model(images)
    logits.square().mean().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "mid_level_head", "merged"),
    [
        ("resnet10t", True, 14),
        ("plumage/resnet18", False, 20),
        ("tf_efficientnet_lite0", False, 49),  # norms with activations; padding as TensorFlow has it
        ("mobilenetv3_small_050", False, 34),
        ("densenet121", False, 59),  # of 121: others stand before their convolutions
        ("convnext_atto", False, 0),
    ],
)
def test_frozen_norms_keep_their_logits_and_every_gradient(
    name: str, mid_level_head: bool, merged: int
) -> None:
    plain = built(name, mid_level_head=mid_level_head).double()
    model, images = copy.deepcopy(plain), drawn_images(3)
    assert merge_frozen_norms(model, IMAGE_PX) == merged
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [key for key, _ in model.named_modules()] == [key for key, _ in plain.named_modules()]
    for each in (plain, model, copied := copy.deepcopy(model)):
        freeze_batchnorm(each.train())
    torch.manual_seed(1)
    expected, gradients = logits_and_gradients(plain, images)
    for each in (model, copied):
        torch.manual_seed(1)
        logits, got = logits_and_gradients(each, images)
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
        for key, gradient in gradients.items():
            assert gradient is not None
            atol = 1e-9 * float(gradient.abs().max())
            torch.testing.assert_close(got[key], gradient, rtol=1e-5, atol=atol, msg=key)


def normalisations(model: nn.Module, images: Tensor) -> int:
    """How many batch norms a pass computes over feature maps."""
    with torch.profiler.profile() as profile:
        model(images)
    return sum(event.count for event in profile.key_averages() if event.key == "aten::batch_norm")


def test_no_pass_over_a_feature_map_is_left_and_bf16_computes_so_too() -> None:
    model, images = built("resnet10t"), drawn_images(2)
    merge_frozen_norms(model, IMAGE_PX)
    assert normalisations(model.train(), images) == 14
    freeze_batchnorm(model)
    assert normalisations(model, images) == 0
    with autocast(CPU, "bf16"):
        logits = model(images)
        assert normalisations(model, images) == 0
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_evaluation_and_norms_that_learn_are_what_they_were_to_the_bit() -> None:
    plain = built("resnet10t")
    model, images = copy.deepcopy(plain), drawn_images(4)
    merge_frozen_norms(model, IMAGE_PX)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), plain.eval()(images))
    expected, gradients = logits_and_gradients(plain.train(), images)
    logits, got = logits_and_gradients(model.train(), images)
    assert torch.equal(logits, expected)
    for key, gradient in gradients.items():
        assert torch.equal(got[key], gradient)  # type: ignore[arg-type]
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_norms_that_thaw_take_the_statistics_of_batches_again() -> None:
    model, images = built("resnet10t"), drawn_images(4)
    merge_frozen_norms(model, IMAGE_PX)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.num_batches_tracked is not None
    for is_frozen, batches in ((True, 0), (False, 1), (True, 0)):
        model.train()
        if is_frozen:
            freeze_batchnorm(model)
        before = int(norm.num_batches_tracked)
        model(images)
        assert int(norm.num_batches_tracked) - before == batches


def test_a_second_call_finds_nothing_more_to_merge() -> None:
    model = built("resnet10t")
    assert (merge_frozen_norms(model, IMAGE_PX), merge_frozen_norms(model, IMAGE_PX)) == (14, 0)


class Uncertain(nn.Module):
    """Pairs that must stay as they are, and one (`last`) that need not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)])  # its output is also added
        self.shared = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)])  # computed twice
        self.heard = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)])
        self.fixed = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False)])
        self.apart = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)])  # something between the two
        self.last = nn.ModuleList([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)])
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first[0](images)
        features = features + self.first[1](features)
        for convolution, norm in (self.shared, self.shared, self.heard, self.fixed):  # type: ignore[misc]
            features = norm(convolution(features))
        features = self.apart[1](self.apart[0](features).relu())
        features = self.last[1](self.last[0](features))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits

    def get_classifier(self) -> nn.Module:
        return self.fc


def test_pairs_that_are_not_certain_stay_as_they_are() -> None:
    torch.manual_seed(0)
    network = Uncertain()
    plain = with_statistics(Classifier(network, (0.5,) * 3, (0.5,) * 3))
    network.heard[0].register_forward_hook(lambda *_: None)
    model = copy.deepcopy(plain)
    assert merge_frozen_norms(model, IMAGE_PX) == 1
    images = drawn_images(2)
    expected, _ = logits_and_gradients(freeze_batchnorm(plain.train()), images)
    logits, _ = logits_and_gradients(freeze_batchnorm(model.train()), images)
    torch.testing.assert_close(logits, expected)
    kept = [module for module in model.modules() if type(module) in (nn.Conv2d, nn.BatchNorm2d)]
    assert len(kept) == 10
