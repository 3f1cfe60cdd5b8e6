"""Parameters and multiply-adds against torchvision's own networks, and against He et al. 2015, table 1."""

import json
from typing import Any

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cli.main import run
from pipeline.config.load import load_config
from pipeline.models.summary import summarise

PUBLISHED = {18: 1.8e9, 34: 3.6e9, 50: 3.8e9, 101: 7.6e9, 152: 11.3e9}


def summary(*overrides: str) -> dict[str, Any]:
    return summarise(load_config(None, ["data.image_px=224", "summary.classes=1000", *overrides]))


def torchvisions(depth: int) -> tuple[int, int]:
    """Parameters and multiply-adds at 224 px of torchvision's network, by the same counter."""
    with torch.device("meta"):
        model = getattr(torchvision.models, f"resnet{depth}")().eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 224, 224))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize("depth", PUBLISHED)
def test_parameters_and_multiply_adds_are_torchvisions(depth: int) -> None:
    network = summary(f"model.name=plumage/resnet{depth}")
    assert (network["parameters"], network["multiply_adds"]) == torchvisions(depth)
    weights = getattr(torchvision.models, f"ResNet{depth}_Weights").IMAGENET1K_V1
    assert network["multiply_adds"] / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.0005)
    assert network["parameters"] == weights.meta["num_params"]


@pytest.mark.parametrize("depth", PUBLISHED)
def test_the_papers_network_has_the_papers_multiply_adds(depth: int) -> None:
    option = "shortcut: A" if depth < 50 else "stride_in: 1x1"
    network = summary(f"model.name=plumage/resnet{depth}", f"model.options={{{option}}}")
    assert network["multiply_adds"] == pytest.approx(PUBLISHED[depth], rel=0.02)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    "name", ["plumage/resnet50", "plumage/resnet_small", "mobilenetv2_100", "vit_tiny_patch16_224"]
)
def test_the_layers_add_up_at_every_depth(name: str, depth: int) -> None:
    network = summary(f"model.name={name}", f"summary.depth={depth}")
    for column in ("parameters", "multiply_adds"):
        assert sum(layer[column] for layer in network["layers"]) == network[column] > 0


def test_a_layer_has_its_shape_and_its_counts() -> None:
    network = summary("model.name=plumage/resnet18", "summary.depth=3")
    layers = {layer["name"]: layer for layer in network["layers"]}
    assert layers["layer2.0.conv1"] == {
        "name": "layer2.0.conv1",
        "kind": "Conv2d",
        "output": [128, 28, 28],
        "parameters": 128 * 64 * 9,
        "multiply_adds": 128 * 64 * 9 * 28 * 28,
    }
    assert layers["fc"]["output"] == [1000]
    assert list(layers)[:4] == ["conv1", "bn1", "relu", "maxpool"]


def test_the_verb_needs_no_data_and_ends_in_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["summary", "--config", "configs/digits_resnet18.yaml"]) == 0
    said = capsys.readouterr()
    network = json.loads(said.out)
    assert (network["classes"], network["image_px"]) == (10, 32)
    assert network["layers"][0]["parameters"] == 64 * 49  # one channel
    assert "multiply-adds" in said.err
    assert run(["summary", "model.name=plumage/resnet19"]) == 2
    assert "there is no 'plumage/resnet19'" in capsys.readouterr().err
