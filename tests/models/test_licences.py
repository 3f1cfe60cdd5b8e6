"""The licence of first weights: timm's own field, the package's, or none for a file."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.models.licences import in_words, licence_of


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("resnetaa50d.sw_in12k", "apache-2.0"),
        ("convnext_base.fb_in22k", "apache-2.0"),
        ("vit_small_patch16_dinov3.lvd1689m", "dinov3-license"),
        ("convnextv2_base.fcmae_ft_in22k_in1k", "cc-by-nc-4.0"),
        ("plumage/resnet50", "bsd-3-clause"),
        ("test_resnet_of_nobody", None),
    ],
)
def test_weights_of_the_hub_have_the_licence_that_timm_says(model: str, expected: str | None) -> None:
    assert licence_of(model, {"source": f"timm/{model}", "tensors": 1, "share": 1.0}) == expected


@pytest.mark.parametrize(
    ("origin", "expected", "words"),
    [
        ({"source": "random"}, "random weights", ""),
        ({"source": "w.pth", "sha256": "ab"}, None, "licence not known"),
        ({"source": "w.pth", "sha256": "ab", "licence": None}, None, "licence not known"),
        (
            {"source": "package 1.0", "sha256": "cd", "licence": "Apache License"},
            "Apache License",
            "licence Apache License",
        ),
    ],
)
def test_of_a_file_it_is_not_known_and_a_package_says_its_own(
    origin: dict[str, Any], expected: str | None, words: str
) -> None:
    assert licence_of("resnet50.tv_in1k", origin) == expected
    assert in_words(origin) == words


def test_a_built_model_says_the_licence_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("test_resnet.r160_in1k", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    _, of_file = build_model(ModelConfig(name="test_resnet", weights=tmp_path / "w.pth"), 3)
    assert of_file["licence"] is None
    _, random = build_model(ModelConfig(name="test_resnet", pretrained=False), 3)
    assert "licence" not in random
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: network)
    _, of_hub = build_model(ModelConfig(name="test_resnet.r160_in1k"), 3)
    assert of_hub["licence"] == timm.get_pretrained_cfg("test_resnet.r160_in1k").license == "apache-2.0"
