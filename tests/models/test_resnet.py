"""The hand-made residual networks against torchvision's and timm's, and against the paper."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from pipeline.common.errors import ConfigError, WeightsError
from pipeline.config.model import ModelConfig
from pipeline.config.optim import OptimConfig
from pipeline.experiments.studies import parity
from pipeline.models import build as building
from pipeline.models import resnet
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier
from pipeline.models.resnet import DESIGNS, ResNet
from pipeline.training.optimizer import parameter_groups
from pipeline.training.optimizer import stages as backbone_stages

DEPTHS = (18, 34, 50, 101, 152)
PARAMETERS = {
    18: 11_689_512,
    34: 21_797_672,
    50: 25_557_032,
    101: 44_549_160,
    152: 60_192_808,
}  # torchvision's
CLASSES = 7


def torchvisions(depth: int) -> nn.Module:
    return getattr(torchvision.models, f"resnet{depth}")(num_classes=CLASSES)


def timms(depth: int) -> nn.Module:
    return timm.create_model(f"resnet{depth}", num_classes=CLASSES)


def ours(depth: int | str, classes: int = CLASSES, **changes: Any) -> ResNet:
    published = DESIGNS[f"plumage/resnet{depth}"]
    return ResNet(published.model_copy(update=changes), classes)


def classifier(name: str, **changes: Any) -> Classifier:
    tree = {"name": name, "pretrained": False} | changes
    return build_model(ModelConfig.model_validate_json(json.dumps(tree)), CLASSES)[0]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def photographs() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "depth", [pytest.param(depth, marks=pytest.mark.slow) if depth > 50 else depth for depth in DEPTHS]
)
def test_logits_gradients_and_state_dict_are_the_librarys(depth: int) -> None:
    theirs = torchvisions(depth)
    parity.randomise_norms(theirs, seed=depth)
    images, label = drawn(2, 3, 33, 33), torch.tensor([1, 5])
    with torch.device("meta"):
        mine, of_timm = ours(depth), timms(depth)
    difference = parity.compare(mine.to_empty(device="cpu"), theirs, images, label)
    assert difference.largest < 1e-9
    difference = parity.compare(of_timm.to_empty(device="cpu"), mine, images, label)
    assert difference.largest < 1e-9
    with torch.no_grad():
        mine.fc.weight += 1  # what was trained here goes back
        for library in (theirs, of_timm):
            assert list(mine.state_dict()) == list(library.state_dict())
            library.load_state_dict(mine.state_dict())
            assert (mine.eval()(images) - library.eval()(images)).abs().max() < 1e-9


def test_parity_notices_another_network() -> None:
    theirs = torchvisions(50)
    parity.randomise_norms(theirs, seed=0)
    difference = parity.compare(ours(50, stride_in="1x1"), theirs, drawn(2, 3, 33, 33), torch.tensor([1, 5]))
    assert (
        min(difference.logits, difference.logits_training, difference.gradients, difference.statistics) > 1e-3
    )


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_number_of_parameters_is_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ours(depth, classes=1000).parameters()) == PARAMETERS[depth]


@pytest.mark.parametrize("depth", [18, 50])
def test_the_same_seed_gives_timms_weights(depth: int) -> None:
    states = []
    for make in (ours, timms):
        torch.manual_seed(11)
        states.append(make(depth).state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_convolutions_are_drawn_with_he_et_als_deviation() -> None:
    torch.manual_seed(0)
    conv = ours(18).layer4[1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "zero"),
    [({}, True), ({"zero_init": False}, False), ({"residual": False}, False), ({"zero_init": True}, True)],
)
def test_the_last_norm_starts_at_zero_in_residual_networks_unless_told(
    changes: dict[str, Any], zero: bool
) -> None:
    for kind, norm in ((18, "bn2"), (50, "bn3")):
        block = ours(kind, **changes).layer2[0]
        assert bool((getattr(block, norm).weight == 0).all()) is zero
        assert (block.bn1.weight == 1).all()


@pytest.mark.parametrize(
    ("shortcut", "projections"), [("A", []), ("B", ["layer2.0", "layer3.0"]), ("C", "all of them")]
)
def test_the_shortcuts_of_the_paper(shortcut: str, projections: Any) -> None:
    model = ours("_small", shortcut=shortcut)
    names = {name.partition(".downsample")[0] for name in model.state_dict() if "downsample" in name}
    every = {f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)}
    assert names == (every if shortcut == "C" else set(projections))


def test_shortcut_a_takes_every_second_place_and_pads_channels_with_zeros() -> None:
    padding = ours("_small", shortcut="A").layer2[0].downsample
    x = drawn(1, 16, 5, 6)
    y = padding(x)
    assert y.shape == (1, 32, 3, 3)
    torch.testing.assert_close(y[:, :16], x[:, :, ::2, ::2], rtol=0, atol=0)
    assert (y[:, 16:] == 0).all()


def test_a_block_adds_its_input_and_a_plain_one_does_not() -> None:
    for residual in (True, False):
        block = ours("_small", residual=residual, zero_init=False).double().eval().layer1[0]
        x = drawn(2, 16, 8, 8)
        branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
        torch.testing.assert_close(block(x), torch.relu(branch + x if residual else branch))


def test_a_plain_network_has_the_layers_of_the_residual_one_without_projections() -> None:
    plain, residual = ours(50, residual=False).state_dict(), ours(50).state_dict()
    assert plain.keys() == {name for name in residual if "downsample" not in name}


def test_the_small_network_is_he_et_als_for_cifar() -> None:
    model = ours(
        "_small", 10, blocks=[3, 3, 3], shortcut="A"
    )  # ResNet-20 with option A: 0.27 M (their table 6)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.27e6, rel=0.02)
    features, (early, late) = model.forward_intermediates(torch.zeros(1, 3, 32, 32), 2)
    assert (early.shape, late.shape, features.shape) == ((1, 32, 16, 16), (1, 64, 8, 8), (1, 64, 8, 8))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) + 1 == 20


def test_width_stem_and_channels_are_as_asked() -> None:
    model = ours(50, width=8, stem="small", in_channels=5, blocks=[1, 2])
    assert model(torch.zeros(2, 5, 16, 16)).shape == (2, CLASSES)
    assert model.conv1.weight.shape == (8, 5, 3, 3)
    assert model.num_features == 64
    assert [info["num_chs"] for info in model.feature_info] == [8, 32, 64]
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2]


@pytest.mark.parametrize(("name", "convolution"), [("1x1", "conv1"), ("3x3", "conv2")])
def test_the_stride_is_in_the_convolution_that_is_asked_for(name: str, convolution: str) -> None:
    block = ours(50, stride_in=name).layer2[0]
    strides = {conv: getattr(block, conv).stride[0] for conv in ("conv1", "conv2", "conv3")}
    assert strides == {"conv1": 1, "conv2": 1, "conv3": 1} | {convolution: 2}


# As a backbone


def test_as_a_backbone_it_gives_the_losses_of_timms(photographs: Tensor) -> None:
    label = torch.tensor([0, 3, 6, 2])
    losses: list[list[float]] = []
    for name in ("plumage/resnet50", "resnet50"):
        torch.manual_seed(5)
        model = classifier(name, dropout=0.2, stochastic_depth=0.3, mid_level_head=True).train()
        groups = parameter_groups(
            model, OptimConfig(head_lr_multiplier=10, layer_decay=0.8), weight_decay=0.01
        )
        optimizer = torch.optim.SGD([{**group, "lr": 0.01 * group["lr_multiplier"]} for group in groups])
        losses.append([])
        for _ in range(3):
            loss = sum(nn.functional.cross_entropy(logits, label) for logits in model(photographs))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == losses[1]
    assert losses[0][2] != losses[0][0]


def test_stages_for_freezing_and_layers_for_decay_are_timms() -> None:
    mine, theirs = classifier("plumage/resnet18"), classifier("resnet18")
    for model in (mine, theirs):
        names = {id(module): name for name, module in model.backbone.named_modules()}
        stages = [[names[id(module)] for module in stage] for stage in backbone_stages(model)]
        assert [len(stage) for stage in stages] == [2, 8, 10, 10, 10, 1]
        assert stages[0] == ["conv1", "bn1"]
        assert stages[-1] == ["fc"]


def test_pooling_and_class_activation_maps_work_as_for_timms(photographs: Tensor) -> None:
    gem = classifier("plumage/resnet18", pool="gem")
    assert any("pool" in name for name, _ in gem.named_parameters())
    for pool in ("max", "avgmax"):
        mine, theirs = classifier("plumage/resnet18", pool=pool), classifier("resnet18", pool=pool)
        mine.load_state_dict(theirs.state_dict())
        assert torch.equal(mine.eval()(photographs), theirs.eval()(photographs))
    maps = mine.class_activation(photographs, torch.tensor([0, 1, 2, 3]))
    assert torch.equal(maps, theirs.class_activation(photographs, torch.tensor([0, 1, 2, 3])))


def test_one_channel_is_the_mean_of_the_normalised_three(photographs: Tensor) -> None:
    how = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.2)}
    model = classifier("plumage/resnet_small", options={"in_channels": 1}, **how).eval()
    rgb = photographs.double() / 255
    grey = sum((rgb[:, c] - how["mean"][c]) / how["std"][c] for c in range(3)) / 3
    torch.testing.assert_close(model(photographs), model.backbone(grey.float().unsqueeze(1)))
    timms_grey = classifier("resnet18", options={"in_chans": 1})
    assert timms_grey.eval()(photographs).shape == (4, CLASSES)


def test_weights_from_a_file_of_torchvision_fill_it(tmp_path: Path, photographs: Tensor) -> None:
    theirs = torchvision.models.resnet18()
    parity.randomise_norms(theirs, seed=4)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    config = ModelConfig(name="plumage/resnet18", weights=tmp_path / "resnet18.pth")
    model, origin = build_model(config, CLASSES)
    assert origin["share"] == 1.0
    assert torch.equal(model.backbone.layer4[1].bn2.weight, theirs.layer4[1].bn2.weight)
    assert model.head.weight.shape == (CLASSES, 512)


def test_pretrained_takes_the_weights_of_timms_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timms(18)
    theirs.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1, 1, 1), "hf_hub_id": "timm/resnet18.tv_in1k"}
    created: list[str] = []

    def create(name: str, pretrained: bool, **options: Any) -> nn.Module:
        created.append(name)
        assert pretrained
        assert options == {"num_classes": CLASSES}
        return theirs

    monkeypatch.setattr(building.timm, "create_model", create)
    model, origin = build_model(ModelConfig(name="plumage/resnet18"), CLASSES)
    assert created == ["resnet18.tv_in1k"]
    assert origin == {
        "source": "timm/resnet18.tv_in1k",
        "tensors": 100,
        "share": 1.0,
        "licence": "bsd-3-clause",
    }
    assert torch.equal(model.backbone.conv1.weight, theirs.conv1.weight)
    assert model.mean.flatten().tolist() == pytest.approx([25.5, 51, 76.5])


def test_every_network_has_weights_under_a_name_of_timms() -> None:
    assert set(resnet.WEIGHTS.values()) <= set(timm.list_models(pretrained=True))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "plumage/resnet19"}, "there is no 'plumage/resnet19'; there are plumage/resnet18, "),
        ({"options": {"shortcut": "D"}}, 'shortcut: "D" is not allowed; allowed: one of A, B, C'),
        ({"options": {"shortcuts": "A"}}, "shortcuts: unknown key; did you mean shortcut?"),
        (
            {"options": {"blocks": [2, 2.5]}},
            "blocks: [2.0, 2.5] is not allowed; allowed: a list, each a whole ",
        ),
        ({"options": {"blocks": []}}, "blocks is empty; give the number of blocks of each stage"),
        ({"options": {"residual": False, "zero_init": True}}, "zero_init would silence a plain network"),
        ({"options": {"residual": False, "shortcut": "A"}}, "a plain network has no shortcut"),
        ({"options": {"stride_in": "1x1"}}, "it is for bottleneck networks"),
        ({"options": {"in_channels": 2}}, "images have 3 channels, or 1 when converted to grey, not 2"),
    ],
)
def test_what_does_not_exist_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        classifier(**{"name": "plumage/resnet18"} | changes)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [ModelConfig(name="plumage/resnet_small"), ModelConfig(name="plumage/resnet18", options={"width": 32})],
)
def test_weights_that_nobody_published_are_one_sentence(config: ModelConfig) -> None:
    with pytest.raises(
        WeightsError, match="no weights are published for this network with these model.options"
    ):
        build_model(config, CLASSES)
