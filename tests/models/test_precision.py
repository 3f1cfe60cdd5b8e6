import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipeline.config.model import ModelConfig
from pipeline.inference.predict import last_layer_inputs
from pipeline.models import precision
from pipeline.models.build import build_model
from pipeline.models.precision import autocast, has_units, resolve_precision
from tests.helpers import tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("setting", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_asked_for_is_taken(setting: precision.Precision) -> None:
    assert resolve_precision(setting, CPU) == setting


@pytest.mark.parametrize(("has_it", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_on_a_cpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, has_it: bool, expected: str
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_it)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), "fp32"),
        ((7, 0), "fp16"),
        ((7, 5), "fp16"),
        ((8, 0), "bf16"),
        ((9, 0), "bf16"),
        ((12, 0), "bf16"),
    ],
)
def test_auto_takes_what_the_tensor_cores_of_a_gpu_compute_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    """Before 8.0 they know no bfloat16, and before 7.0 there are none."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_precision("auto", torch.device("cuda", 0)) == expected
    assert resolve_precision("bf16", torch.device("cuda", 0)) == "bf16"
    assert has_units("bf16", torch.device("cuda", 0)) == (expected == "bf16")
    assert has_units("fp16", torch.device("cuda", 0)) == (expected != "fp32")


def test_autocast_computes_in_the_precision_and_is_inert_for_fp32() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(CPU, name):  # type: ignore[arg-type]
            assert layer(x).dtype == dtype


def test_a_resumed_run_and_its_evaluation_keep_the_precision_of_its_beginning(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = "train.precision=auto"
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert tiny.do("train", tmp_path, auto, "train.max_steps=2") == 0
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    assert "no units" not in capsys.readouterr().err
    assert tiny.do("train", tmp_path, auto, "train.max_steps=4") == 0
    assert (
        "auto goes on in bf16, in which the run began; this processor has no units" in capsys.readouterr().err
    )
    assert tiny.do("eval", tmp_path, auto) == 0
    last = torch.load(tmp_path / "runs/tiny/checkpoints/last.pt", weights_only=True)
    assert last["precision"] == "bf16"
    assert json.loads((tmp_path / "runs/tiny/environment.json").read_text())["precision"] == "bf16"
    assert tiny.do("train", tmp_path, "train.precision=bf16", "train.max_steps=4", "run.name=asked") == 0
    asked = tmp_path / "runs/asked/checkpoints/last.pt"
    assert tiny.same_weights(asked, tmp_path / "runs/tiny/checkpoints/last.pt")


# Layers that give logits: a linear one, one in a head of its own, two side by side, a convolution.
HEADS = ["test_resnet", "test_efficientnet", "pit_ti_distilled_224", "dla34"]


def bf16_logits_and_features(model: Any, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode(), last_layer_inputs(model) as inputs, autocast(CPU, "bf16"):
        logits = model(images)
    return logits, inputs[0]


@pytest.mark.parametrize(
    ("name", "mid_level_head"), [*((name, False) for name in HEADS), ("test_resnet", True)]
)
def test_under_bf16_the_head_computes_in_float32(name: str, mid_level_head: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(name=name, pretrained=False, mid_level_head=mid_level_head)
    model = build_model(config, 200)[0].eval()
    logits, features = bf16_logits_and_features(model, 224 if "224" in name else 64)
    assert logits.dtype == torch.float32
    # Logits in bfloat16 have all but their first 8 bits at zero; of 800 float32 ones hardly any has.
    assert (logits == logits.bfloat16().float()).float().mean() < 0.05
    if name == "test_resnet" and not mid_level_head:
        with torch.inference_mode():
            torch.testing.assert_close(logits, model.head(features), rtol=1e-5, atol=1e-6)


def test_two_classes_that_differ_by_little_are_no_tie_under_bf16() -> None:
    model = build_model(ModelConfig(name="test_resnet", pretrained=False), 2)[0].eval()
    weight, bias = model.head.weight, model.head.bias
    with torch.no_grad():
        weight[1] = weight[0]  # type: ignore[index, operator]
        bias[:] = torch.tensor([1.0, 1.001])  # type: ignore[index, operator]
    logits, _ = bf16_logits_and_features(model, 64)
    assert logits.argmax(1).tolist() == [1] * 4


def test_a_head_in_float32_keeps_its_names_and_a_copy_has_weights_of_its_own() -> None:
    model = build_model(ModelConfig(name="test_resnet", pretrained=False), 3)[0].eval()
    assert type(model.head).__name__ == "Linear"
    assert {"backbone.fc.weight", "backbone.fc.bias"} <= model.state_dict().keys()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight.zero_()  # type: ignore[operator]
        other.head.bias.zero_()  # type: ignore[operator]
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert not other(images).any()
    assert model(images).any()


def test_in_fp32_the_logits_are_timms_bit_for_bit() -> None:
    model = build_model(ModelConfig(name="test_resnet", pretrained=False), 3)[0].eval()
    theirs = timm.create_model("test_resnet", num_classes=3).eval()
    theirs.load_state_dict(model.backbone.state_dict())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(images), theirs(model.normalised(images)))


@pytest.mark.parametrize("shape", [{"kernel_size": 3, "stride": 2}, {"kernel_size": 5, "padding": 2}])
def test_depthwise_convolutions_that_are_slow_in_bf16_learn_in_float32_and_evaluate_as_before(
    shape: dict[str, int],
) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv2d(8, 8, **shape, groups=8), torch.nn.Conv2d(8, 4, 5, stride=2))
    layers = copy.deepcopy(plain)
    precision.train_depthwise_in_float32(layers)
    assert list(layers.state_dict()) == list(plain.state_dict())
    features = torch.randn(4, 8, 15, 15).bfloat16()
    with autocast(CPU, "bf16"), torch.no_grad():
        assert torch.equal(layers.eval()(features), plain.eval()(features))
    with autocast(CPU, "bf16"):
        learned = layers.train()[0](features)
    learned.float().square().sum().backward()
    expected = plain[0](features.float())
    expected.backward(gradient=(2 * expected.detach().bfloat16().float()).bfloat16().float())
    assert learned.dtype == torch.bfloat16
    assert torch.equal(learned, expected.bfloat16())
    assert torch.equal(layers[0].weight.grad, plain[0].weight.grad)  # type: ignore[arg-type]
    assert type(layers[1]) is torch.nn.Conv2d  # other convolutions are fast in bfloat16
