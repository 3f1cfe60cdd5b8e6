"""Weights from a file into a model: pretrained ones, however they were saved, and those of a checkpoint."""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.common import console, files
from pipeline.common.errors import CheckpointError, WeightsError, name_some
from pipeline.distributed import data_parallel
from pipeline.models.classifier import Classifier, head_of

MIN_SHARE = 0.9  # of the tensors: a network with fewer of them loaded is not a pretrained one
ABSENT_NAMED = 5
WRAPPERS = ("state_dict", "model", "model_state", "state_dict_ema")
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
# What the readers raise for damaged files; old .pth files are read by an unpickler that checks little.
DAMAGE = (
    *(pickle.UnpicklingError, SafetensorError, struct.error, RuntimeError, EOFError),
    *(ValueError, TypeError, LookupError, AssertionError),
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A state dict of timm or torchvision, as .safetensors, or .pth read with `weights_only`.

    A wrapper ("state_dict": {...}) and a prefix common to all names ("module.") are taken off.

    Raises:
        WeightsError: the file is missing, damaged, or holds no tensors by name.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; give its path as model.weights=PATH")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise WeightsError(
            f"{path}: not a file of tensors and plain types alone ({type(error).__name__}); "
            "save `model.state_dict()` with torch.save or safetensors and give that file"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"{path}: holds no tensors by name; save `model.state_dict()` of timm or torchvision"
        )
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def backbone_tensors(backbone: Any) -> dict[str, Tensor]:
    """Parameters and running statistics of a backbone, by name, without its head and batch norm's step counters."""
    head = {tensor.data_ptr() for tensor in head_of(backbone).state_dict().values()}
    return {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if tensor.is_floating_point() and tensor.data_ptr() not in head
    }


def load_pretrained(backbone: Any, path: Path) -> dict[str, Any]:
    """Load the tensors that fit a backbone by name and shape, whatever its head.

    Returns:
        source (the path), sha256 of the file, number of tensors loaded, and their share of the backbone's.

    Raises:
        WeightsError: the file is missing or damaged, less than 90% of the backbone's tensors fit, or a number is
            not finite.
    """
    state, tensors = read_state_dict(path), backbone_tensors(backbone)
    fitting = {
        name: state[name]
        for name, tensor in tensors.items()
        if name in state and state[name].shape == tensor.shape
    }
    if wrong := not_finite(fitting):
        raise WeightsError(
            f"{path}: holds numbers that are not finite, in {name_some(wrong)}; bring a file of a training that has "
            "not diverged"
        )
    share = len(fitting) / len(tensors)
    if share < 1:
        absent = ", ".join([name for name in tensors if name not in fitting][:ABSENT_NAMED])
        fit = f"{path}: fits {len(fitting)} of the model's {len(tensors)} tensors by name and shape (not: {absent} ...)"
        if share < MIN_SHARE:
            raise WeightsError(f"{fit}; bring the weights of this very model or set model.pretrained=false")
        console.warn(f"{fit}; the others start from random values")
    backbone.load_state_dict(fitting, strict=False)
    digest = files.digest_of_file(path)
    return {"source": str(path), "sha256": digest, "tensors": len(fitting), "share": share}


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinite numbers."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def load_weights(
    model: Classifier, weights: Mapping[str, Tensor], content: dict[str, Any], path: Path
) -> None:
    """Load the weights of a checkpoint, which have to fit the whole model.

    Args:
        weights: whole tensors by name; a model in shards takes its part of each.
        content: of the checkpoint, whose configuration an error names.
        path: of the checkpoint.

    Raises:
        CheckpointError: they are the weights of another model.
    """
    tensors = model.state_dict()
    weights = {
        name: data_parallel.shard_like(weight, tensors[name]) if name in tensors else weight
        for name, weight in weights.items()
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        name = content["config"]["model"]["name"]
        raise CheckpointError(
            f"{path}: holds the weights of another model ({name}); give the configuration it was trained with"
        ) from error
