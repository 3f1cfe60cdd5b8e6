"""Pretrained weights from a local file: a state dict, however it was saved."""

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
from pipeline.common.errors import CheckpointError, WeightsError
from pipeline.distributed import data_parallel
from pipeline.models.classifier import Classifier, head_of

LEAST_SHARE = 0.9  # of the tensors: with fewer, what is trained is not a pretrained network
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


ABSENT_NAMED = 5


def backbone_tensors(backbone: Any) -> dict[str, Tensor]:
    """Parameters and running statistics without the head's; batch norm's step counter is no weight."""
    head = {tensor.data_ptr() for tensor in head_of(backbone).state_dict().values()}
    return {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if tensor.is_floating_point() and tensor.data_ptr() not in head
    }


def load_pretrained(backbone: Any, path: Path) -> dict[str, Any]:
    """Load what fits by name and shape; few tensors loaded is an error."""
    state, body = read_state_dict(path), backbone_tensors(backbone)
    fitting = {
        name: state[name] for name, own in body.items() if name in state and state[name].shape == own.shape
    }
    share = len(fitting) / len(body)
    if share < 1:
        absent = ", ".join([name for name in body if name not in fitting][:ABSENT_NAMED])
        found = f"{path}: fits {len(fitting)} of the model's {len(body)} tensors by name and shape (not: {absent} ...)"
        if share < LEAST_SHARE:
            raise WeightsError(f"{found}; bring the weights of this very model or set model.pretrained=false")
        console.warn(f"{found}; the others start from random values")
    backbone.load_state_dict(fitting, strict=False)
    digest = files.digest_of_file(path)
    return {"source": str(path), "sha256": digest, "tensors": len(fitting), "share": share}


def load_weights(
    model: Classifier, weights: Mapping[str, Tensor], content: dict[str, Any], path: Path
) -> None:
    own = model.state_dict()
    weights = {
        name: data_parallel.shard_like(weight, own[name]) if name in own else weight
        for name, weight in weights.items()
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        name = content["config"]["model"]["name"]
        raise CheckpointError(
            f"{path}: holds the weights of another model ({name}); give the configuration it was trained with"
        ) from error
