"""A network of timm with its weights and a new head, fed with uint8."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants as hub
from safetensors.torch import save_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.transforms.v2.functional import normalize, to_dtype

from pipeline.common import files
from pipeline.common.errors import ConfigError, WeightsError
from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier, freeze_batchnorm

TINY = "test_resnet"
State = dict[str, Tensor]


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def pretrained() -> State:
    """Weights of the tiny network with a head for seven classes; its statistics are not the initial ones."""
    torch.manual_seed(1)
    model = timm.create_model(TINY, num_classes=7)
    return {name: value + 0.1 * torch.rand_like(value.float()) for name, value in model.state_dict().items()}


def random_model(**changes: Any) -> Classifier:
    return build_model(ModelConfig.model_validate({"name": TINY, "pretrained": False} | changes), 3)[0]


def from_file(path: Path, classes: int = 3, name: str = TINY) -> tuple[Classifier, dict[str, Any]]:
    return build_model(ModelConfig(name=name, weights=path), classes)


def body(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    skipped = ("fc.", "head.", "num_batches_tracked")
    return {name: value for name, value in state.items() if not any(part in name for part in skipped)}


def save_pth(state: State, path: Path) -> None:
    torch.save(state, path)


def save_old_pth(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_checkpoint(state: State, path: Path) -> None:
    renamed = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": renamed, "epoch": 3, "arch": TINY}, path)


def save_compiled(state: State, path: Path) -> None:
    renamed = {f"_orig_mod.module.backbone.{name}": value for name, value in state.items()}
    torch.save({"model": renamed, "format": 1}, path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("w.pth", save_pth),
        ("w.pt", save_old_pth),
        ("w.safetensors", save_file),
        ("w.pth.tar", save_checkpoint),
        ("w.ckpt", save_compiled),
    ],
)
def test_a_local_file_fills_all_but_the_head(
    tmp_path: Path, pretrained: State, name: str, save: Callable[[State, Path], None]
) -> None:
    path = tmp_path / name
    save(pretrained, path)
    model, origin = from_file(path)
    loaded, expected = body(model.backbone.state_dict()), body(pretrained)
    assert loaded.keys() == expected.keys()
    for key, value in loaded.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    assert origin == {
        "source": str(path),
        "sha256": files.digest_of_file(path),
        "tensors": len(expected),
        "share": 1.0,
        "licence": None,
    }
    assert model.head.weight.shape == (3, 96)


def test_the_head_is_new_even_when_the_files_has_as_many_classes(tmp_path: Path, pretrained: State) -> None:
    save_pth(pretrained, tmp_path / "w.pth")
    model, _ = from_file(tmp_path / "w.pth", classes=7)
    assert model.head.weight.shape == pretrained["fc.weight"].shape
    assert (model.head.weight != pretrained["fc.weight"]).all()


def test_torchvisions_resnet_is_timms(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(2)
    theirs = resnet18(num_classes=3)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    save_pth(theirs.state_dict(), tmp_path / "w.pth")
    model, origin = from_file(tmp_path / "w.pth", name="resnet18.tv_in1k")
    assert (origin["tensors"], origin["share"]) == (100, 1.0)
    model.head.load_state_dict(theirs.fc.state_dict())
    floats = normalize(to_dtype(images, scale=True), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images), theirs.eval()(floats), rtol=1e-4, atol=1e-4)


def test_the_share_says_how_much_fits_and_the_rest_stays_random(tmp_path: Path, pretrained: State) -> None:
    name = "layer1.0.conv1.weight"
    state = pretrained | {name: torch.zeros(1, 2, 3, 3)}
    save_pth(state, tmp_path / "w.pth")
    model, origin = from_file(tmp_path / "w.pth")
    total = len(body(state))
    assert (origin["tensors"], origin["share"]) == (total - 1, (total - 1) / total)
    assert model.backbone.state_dict()[name].std() > 0.01


def test_the_weights_of_another_model_are_refused(tmp_path: Path, pretrained: State) -> None:
    path = tmp_path / "w.pth"
    save_pth(pretrained, path)
    with pytest.raises(WeightsError) as caught:
        from_file(path, name="test_efficientnet")
    assert str(caught.value).startswith(f"{path}: fits 0 of the model's ")
    assert str(caught.value).endswith("give the weights of this exact model or set model.pretrained=false")


def test_half_of_the_weights_is_too_few(tmp_path: Path, pretrained: State) -> None:
    half = dict(list(pretrained.items())[: len(pretrained) // 2])
    save_pth(half, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"fits \d\d of the model's \d\d tensors by name and shape"):
        from_file(tmp_path / "w.pth")


def test_a_missing_file_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"w\.pth: no such weights file; give .* model\.weights=PATH"):
        from_file(tmp_path / "w.pth")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path, new_format: bool) -> None:
    path, target = tmp_path / "w.pth", tmp_path / "exploded"
    torch.save({"conv1.weight": Bomb(target)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(WeightsError, match="not a file of only tensors and plain types"):
        from_file(path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>no</html>", b"0 birds", b"version 1", b"\x80\x02}q\x00"])
def test_what_holds_no_weights_is_one_sentence(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a file of only tensors and plain types"):
        from_file(path)


@pytest.mark.parametrize(("name", "save"), [("w.pth", save_pth), ("w.safetensors", save_file)])
def test_a_file_cut_in_half_is_one_sentence(
    tmp_path: Path, pretrained: State, name: str, save: Callable[[State, Path], None]
) -> None:
    path = tmp_path / name
    save(pretrained, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="not a file of only tensors and plain types"):
        from_file(path)


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"epoch": 3}, torch.zeros(3), {}])
def test_a_file_without_tensors_by_name_is_one_sentence(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds no named tensors; save `model\.state_dict\(\)`"):
        from_file(tmp_path / "w.pth")


def test_without_network_or_file_one_sentence_says_which_file_to_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        build_model(ModelConfig(name=TINY), 3)
    assert str(caught.value) == (
        "test_resnet: its weights cannot be downloaded (LocalEntryNotFoundError); where there is a network, "
        "torch.save timm.create_model('test_resnet', pretrained=True).state_dict(), copy the file here and give "
        "model.weights=PATH; or start from random weights: model.pretrained=false"
    )


def test_an_unknown_model_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        random_model(name="resnet19")
    assert str(caught.value).startswith("model.name: timm has no model 'resnet19'; did you mean resnet1")
    with pytest.raises(ConfigError, match=r"no model 'qqqqqqqqqqq'; timm\.list_models\(\) has all names"):
        random_model(name="qqqqqqqqqqq")


def test_an_unknown_tag_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(ModelConfig(name="resnet18.tv_in2k"), 3)
    assert "no weights are published as 'resnet18.tv_in2k'; there are: " in str(caught.value)
    assert "resnet18.tv_in1k" in str(caught.value)


def test_options_reach_the_model_and_unknown_ones_are_named() -> None:
    assert random_model(options={"drop_rate": 0.25}).backbone.drop_rate == 0.25
    with pytest.raises(ConfigError, match=r"model\.options: test_resnet does not take \{'dorp_rate': 0.25\}"):
        random_model(options={"dorp_rate": 0.25})


@pytest.mark.parametrize(
    "option",
    [
        *(
            "checkpoint_path",
            "pretrained_cfg",
            "pretrained_cfg_overlay",
            "pretrained",
            "cache_dir",
            "features_only",
        ),
        *("num_classes", "pretrained_strict", "pretrained_filter_fn", "model_cfg", "out_indices", "dtype"),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_an_option_that_names_a_file_or_reaches_the_network_is_refused(
    tmp_path: Path, option: str, pretrained: bool
) -> None:
    target = tmp_path / "exploded"
    torch.save({"conv1.weight": Bomb(target)}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=f"model\\.options: {option} is not a network option"):
        build_model(
            ModelConfig(name=TINY, pretrained=pretrained, options={option: str(tmp_path / "evil.pth")}), 3
        )
    assert not target.exists()


def test_a_folder_as_a_models_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.name: local-dir:.* is a folder; give the network's name in timm"
    ):
        random_model(name=f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("key", "value", "option", "other"),
    [
        ("dropout", 0.5, "drop_rate", 0.25),
        ("pool", "max", "global_pool", "avg"),
        ("pool", "gem", "global_pool", "avg"),
    ],
)
def test_an_option_that_contradicts_a_key_of_model_is_refused(
    key: str, value: Any, option: str, other: Any
) -> None:
    with pytest.raises(ConfigError, match=f"{option}={other} contradicts model.{key}={value}"):
        random_model(**{key: value, "options": {option: other}})
    if value != "gem":
        random_model(**{key: value, "options": {option: value}})


def test_uint8_is_normalised_inside(images: Tensor) -> None:
    model = random_model(name="resnet10t").eval()
    floats = normalize(to_dtype(images, scale=True), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    with torch.inference_mode():
        logits = model(images)
        torch.testing.assert_close(logits, model.backbone(floats), rtol=1e-4, atol=1e-5)
    assert (logits.shape, logits.dtype) == ((4, 3), torch.float32)


def test_mean_and_deviation_are_those_of_the_weights_unless_given(images: Tensor) -> None:
    usual = {name: random_model(name=name).mean.flatten().tolist() for name in ("resnet10t", TINY)}
    assert usual == {
        "resnet10t": pytest.approx([255 * value for value in IMAGENET_DEFAULT_MEAN]),
        TINY: [127.5] * 3,
    }
    given = random_model(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).eval()
    floats = normalize(to_dtype(images, scale=True), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    with torch.inference_mode():
        torch.testing.assert_close(given(images), given.backbone(floats), rtol=1e-4, atol=1e-5)


def test_the_state_dict_holds_the_backbone_alone() -> None:
    model = random_model()
    names = {f"backbone.{name}" for name in model.backbone.state_dict()}
    assert model.state_dict().keys() == names


def test_random_weights_are_said_to_be_random() -> None:
    _, origin = build_model(ModelConfig(name=TINY, pretrained=False), 3)
    assert origin == {"source": "random", "tensors": 0, "share": 0.0}


def test_both_heads_of_a_distilled_network_are_the_head(tmp_path: Path) -> None:
    torch.manual_seed(3)
    saved = timm.create_model("pit_ti_distilled_224", num_classes=5)
    save_pth(saved.state_dict(), tmp_path / "w.pth")
    model, origin = from_file(tmp_path / "w.pth", name="pit_ti_distilled_224")
    assert [layer.out_features for layer in model.head] == [3, 3]
    assert origin["tensors"] == len(saved.state_dict()) - 4


@pytest.mark.parametrize("name", [TINY, "test_efficientnet"])
def test_frozen_batch_norms_keep_their_statistics_and_go_on_learning(images: Tensor, name: str) -> None:
    model = freeze_batchnorm(random_model(name=name).train())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.ones_(norm.weight)  # the last of a residual branch begins with zeros
    before = [buffer.clone() for norm in norms for buffer in norm.buffers()]
    model(images).square().sum().backward()
    after = [buffer for norm in norms for buffer in norm.buffers()]
    assert len(norms) > 5
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(norm.weight.grad.abs().sum() > 0 for norm in norms)
    assert model.training and model.head.training


def test_batch_norms_that_are_not_frozen_do_not_keep_them(images: Tensor) -> None:
    model = random_model().train()
    before = {name: value.clone() for name, value in model.named_buffers() if "running_mean" in name}
    model(images)
    assert before
    assert not any(torch.equal(model.get_buffer(name), value) for name, value in before.items())
