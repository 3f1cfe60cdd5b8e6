"""Weights from files: which tensors of a file are taken, and those that no trained network has."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.common.errors import WeightsError
from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.models.pretrained import read_state_dict
from tests.helpers import tiny

NAME = "test_resnet"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> State:
    torch.manual_seed(1)
    model = timm.create_model(NAME, num_classes=7)
    return {name: value + 0.1 * torch.rand_like(value.float()) for name, value in model.state_dict().items()}


def load(path: Path) -> dict[str, Any]:
    return build_model(ModelConfig(name=NAME, weights=path), 3)[1]


def test_the_weights_of_a_run_with_an_average_are_the_average_and_the_run_says_so(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["train.ema_decay=0.9", "model.mid_level_head=true"]
    assert tiny.do("train", tmp_path, *more, "train.epochs=1", "run.name=first") == 0
    first = tiny.checkpoints(tmp_path, "first") / "best.pt"
    saved = torch.load(first, weights_only=True)
    found = read_state_dict(first)
    assert found.entry == "ema"
    for name, value in found.tensors.items():
        assert torch.equal(value, saved["ema"][f"backbone.{name}"])
    learning = [
        name
        for name in found.tensors
        if not torch.equal(saved["model"][f"backbone.{name}"], found.tensors[name])
    ]
    assert learning
    capsys.readouterr()
    start = ["model.pretrained=true", f"model.weights={first}", "train.max_steps=1"]
    assert tiny.do("train", tmp_path, *start, "run.name=second") == 0
    assert f"weights: {first} (its average, ema), 100% of the body loaded" in capsys.readouterr().err
    origin = json.loads((tmp_path / "runs/second/environment.json").read_text())["weights"]
    assert (origin["average"], origin["share"]) == ("ema", 1.0)


def test_a_run_without_an_average_gives_its_weights(trained: Path) -> None:
    last = tiny.checkpoints(trained) / "last.pt"
    found = read_state_dict(last)
    assert (found.entry, found.is_average) == ("model", False)
    saved = tiny.weights(last)
    assert all(torch.equal(value, saved[f"backbone.{name}"]) for name, value in found.tensors.items())
    assert "average" not in load(last)


@pytest.mark.parametrize(
    ("place", "average"),
    [
        (["model", "state_dict"], False),
        (["state_dict", "model"], False),
        (["state_dict_ema"], True),
        (["model_ema", "state_dict"], True),
    ],
)
def test_wrappers_in_one_another_are_taken_off(
    tmp_path: Path, weights: State, place: list[str], average: bool
) -> None:
    content: Any = {f"module.{name}": value for name, value in weights.items()}
    for wrapper in reversed(place):
        content = {wrapper: content, "epoch": 3, "loss": torch.zeros(()), "ema": None}
    if average:
        content["state_dict"] = {name: value + 1 for name, value in weights.items()}
    torch.save(content, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert (found.entry, found.is_average) == (".".join(place), average)
    assert found.tensors.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in found.tensors.items())


def test_a_file_that_contains_itself_holds_no_tensors(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no named tensors"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.SAFETENSORS", "w.SafeTensors", "w.bin", "w"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, weights: State, name: str) -> None:
    save_file(weights, tmp_path / name)
    assert load(tmp_path / name)["share"] == 1
    torch.save(weights, tmp_path / "other.safetensors")
    assert load(tmp_path / "other.safetensors")["share"] == 1


def broken(weights: State, how: str) -> State:
    name = "layer1.0.conv1.weight"
    value = weights[name]
    changed = {
        "nan": torch.full_like(value, torch.nan),
        "inf": value.index_fill(0, torch.tensor([0]), torch.inf),
        "float64": value.double() * 1e300,
        "int8": (value * 100).to(torch.int8),
        "bool": value > 0,
        "complex": value.to(torch.complex64),
        "sparse": value.to_sparse(),
    }
    if how == "zeros":
        return {name: torch.zeros_like(value) for name, value in weights.items()}
    if how == "variance":
        return weights | {"bn1.running_var": -weights["bn1.running_var"]}
    return weights | {name: changed[how]}


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("nan", r"holds numbers that are not finite in float32, in layer1\.0\.conv1\.weight"),
        ("inf", "holds numbers that are not finite"),
        ("float64", "holds numbers that are not finite in float32"),
        ("int8", r"holds int8 numbers where dense floats are expected, in layer1\.0\.conv1\.weight"),
        ("bool", "holds bool numbers"),
        ("complex", "holds complex64 numbers"),
        pytest.param(
            *("sparse", "holds float32 numbers where dense floats are expected"),
            marks=pytest.mark.filterwarnings("ignore:Validating sparse tensor"),
        ),
        ("zeros", "all weights in it are zero"),
        ("variance", r"holds negative variances, in bn1\.running_var"),
    ],
)
def test_numbers_that_no_trained_network_has_are_refused(
    tmp_path: Path, weights: State, how: str, sentence: str
) -> None:
    path = tmp_path / "w.pth"
    torch.save(broken(weights, how), path)
    with pytest.raises(WeightsError, match=sentence) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_floats_of_other_sizes_are_read(tmp_path: Path, weights: State, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    torch.save(state, tmp_path / "w.pth")
    model, origin = build_model(ModelConfig(name=NAME, weights=tmp_path / "w.pth"), 3)
    assert origin["share"] == 1
    name = "layer1.0.conv1.weight"
    assert torch.equal(model.backbone.get_parameter(name), state[name].float())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_is_one_sentence_or_the_weights_themselves(
    tmp_path: Path, weights: State, seed: int
) -> None:
    """Seeded: each kind of file with some bytes changed, and cut."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(20):
        path = tmp_path / f"{number}.pth"
        if number % 3 == 0:
            save_file(weights, path)
        else:
            torch.save(weights, path, _use_new_zipfile_serialization=number % 3 == 1)
        content = bytearray(path.read_bytes())
        head = 2000 if number % 2 else len(content)
        for place in torch.randint(0, head, (8,), generator=generator).tolist():
            content[place] = int(torch.randint(0, 256, (), generator=generator))
        if number % 5 == 0:
            del content[int(torch.randint(0, len(content), (), generator=generator)) :]
        path.write_bytes(content)
        try:
            load(path)
        except WeightsError as error:
            assert str(error).startswith(str(path))


def test_a_changed_bit_is_seen_where_the_file_has_checksums(weights: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(weights, path)
    content = bytearray(path.read_bytes())
    content[content.index(weights["conv1.0.weight"].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth: not a file of only tensors .*BadZipFile"):
        load(path)


def test_a_file_without_checksums_is_taken(weights: State, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load(tmp_path / "w.pth")["share"] == 1.0
