"""Folded batch norms give the same logits, or are not folded."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.models.folding import fold_batchnorms

IMAGE_PX = 64


def trained_statistics(model: Classifier) -> Classifier:
    """The model with batch norms that are no identity."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randint(0, 256, (8, 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8))
    return model.eval()


def batchnorms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "mid_level_head", "before", "after"),
    [
        ("resnet10t", False, 14, 0),
        ("resnet10t", True, 14, 0),
        ("plumage/resnet18", False, 20, 0),
        ("tf_efficientnet_lite0", False, 49, 0),  # norms with activations
        ("mobilenetv3_small_050", False, 34, 0),
        ("densenet121", False, 121, 62),  # norms before their convolutions
        ("convnext_atto", False, 0, 0),
    ],
)
def test_logits_stay_within_a_hundred_thousandth(
    name: str, mid_level_head: bool, before: int, after: int
) -> None:
    torch.manual_seed(0)
    settings = ModelConfig(name=name, pretrained=False, mid_level_head=mid_level_head)
    model = trained_statistics(build_model(settings, 5)[0])
    folded = fold_batchnorms(model, IMAGE_PX)
    images = torch.randint(0, 256, (3, 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8)
    with torch.no_grad():
        expected, got = model(images), folded(images)
    assert (batchnorms(model), batchnorms(folded)) == (before, after)
    assert not folded.training
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert got.argmax(1).tolist() == expected.argmax(1).tolist()


class BranchedAfterConvolution(nn.Module):
    """A convolution whose output a norm takes, and a sum too: the norm cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        once = self.conv(images)
        logits: Tensor = self.fc((once + self.norm(once)).mean((2, 3)))
        return logits

    def get_classifier(self) -> nn.Module:
        return self.fc


def test_a_model_whose_logits_would_change_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    model = trained_statistics(Classifier(BranchedAfterConvolution(), (0.5,) * 3, (0.5,) * 3))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert fold_batchnorms(model, IMAGE_PX) is model
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
