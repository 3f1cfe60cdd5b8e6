"""The studies that measure networks: batch norm, and parity with the libraries."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.model import ModelConfig
from pipeline.experiments.studies import batch_norm, parity
from pipeline.experiments.studies.plan import Member
from pipeline.models.build import build_model
from pipeline.models.resnet import ResNet
from tests.helpers import tiny

NETWORK = {
    "name": "plumage/resnet_small",
    "pretrained": False,
    "options": {"width": 4, "blocks": [1, 1]},
}


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    tree = NETWORK | {"options": {**NETWORK["options"], **options}}  # type: ignore[dict-item]
    return build_model(ModelConfig.model_validate_json(json.dumps(tree)), 3)[0]


def noise(count: int = 64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=random)
    return images, torch.randint(3, (count,), generator=random)


class Crowd(nn.Module):
    """Knows every image in eval(), and in train() only among 16 or more."""

    def forward(self, images: Tensor) -> Tensor:
        label = images[:, 0, 0, 0].long()
        if self.training and len(images) < 16:
            label = (label + 1) % 3
        logits = nn.functional.one_hot(label, 3).float()
        return logits[None] if self.training else logits


def test_accuracy_in_train_is_that_of_whole_batches_of_each_size() -> None:
    label = torch.arange(90) % 3
    images = label.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    top1 = batch_norm.modes(Crowd().eval(), images, label)
    assert top1 == {"eval": 1, "train_4": 0, "train_8": 0, "train_16": 1, "train_32": 1, "train_64": 1}


def test_what_batch_norm_does_holds_for_a_network_and_is_not_trivial() -> None:
    images, label = noise()
    model = network().eval()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    values = batch_norm.claims(model, images, label)
    assert list(values) == list(batch_norm.CLAIMS)
    exact = (
        "eval_alone",
        "normalised_mean",
        "normalised_variance",
        "running_rule",
        "bias_train",
        "bias_gradient",
    )
    assert all(values[name] < 1e-10 for name in exact), values
    assert values["eval_running"] == 0
    assert values["train_company"] > 0.001
    assert values["bias_eval"] > 0.001
    after = model.state_dict().values()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_claim_that_does_not_hold_shows() -> None:
    model = network().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True: module  # type: ignore[method-assign, assignment]  # noqa: ARG005, B023
    values = batch_norm.claims(model, *noise())  # its norms never leave evaluation mode
    assert values["train_company"] < 1e-10
    assert values["normalised_mean"] > 0.01
    assert values["running_rule"] > 0.01
    assert values["bias_train"] > 0.001


def test_biases_are_given_to_every_convolution() -> None:
    biased = batch_norm.with_biases(network())
    convolutions = [module for module in biased.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 6  # the stem, two blocks of two, and one shortcut
    assert all(module.bias is not None and module.bias.std() > 0.1 for module in convolutions)
    assert not any(name.endswith("conv1.bias") for name in network().state_dict())


def test_the_claims_are_a_markdown_table_with_ends() -> None:
    claims = pd.DataFrame([dict.fromkeys(batch_norm.CLAIMS, value) for value in (0.0, 0.5)])
    lines = batch_norm.claims_table(claims).splitlines()
    assert len(lines) == 2 + len(batch_norm.CLAIMS)
    assert lines[2].startswith("| eval(): largest change of a logit when the image is looked at alone")
    assert lines[2].endswith("| 0 | 0.500 |")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_new_network_is_the_librarys(library: str) -> None:
    differences = parity.compare_new("plumage/resnet18", library, 0)
    assert differences["unlike"] > 0.01
    assert all(differences[name] < parity.TOLERANCE for name in parity.FRESH), differences


def test_another_network_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(ResNet):
        def forward_features(self, x: Tensor) -> Tensor:
            return super().forward_features(x) * (1 + 1e-6)

    monkeypatch.setattr(parity, "ResNet", Other)
    differences = parity.compare_new("plumage/resnet18", "torchvision", 0)
    assert differences["logits"] > parity.TOLERANCE
    assert differences["gradients"] > parity.TOLERANCE


def test_weights_that_were_trained_here_load_there_and_both_studies_draw(birds: Path, tmp_path: Path) -> None:
    more = ("model.name=plumage/resnet18", "train.max_steps=1", "data.image_px=32")
    assert tiny.do("train", tmp_path, *more) == 0
    member = Member("resnet18", "", 0, tiny.config(tmp_path, *more))
    differences = parity.measure([member])
    assert differences["condition"].tolist() == ["torchvision", "timm"]
    assert (differences["trained"] < parity.TOLERANCE).all()
    assert (differences["trained"] >= 0).all()
    parity.draw(tmp_path / "parity.png", "a title", differences)
    modes = pd.DataFrame(
        [{"condition": "batch8", "eval": 0.5} | {f"train_{n}": 0.5 for n in batch_norm.BATCHES}]
    )
    runs = pd.DataFrame({"condition": ["batch8"], "test_top1": [0.5]})
    batch_norm.draw(tmp_path / "batch_norm.png", "a title", modes, runs)
    for name in ("parity.png", "batch_norm.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
