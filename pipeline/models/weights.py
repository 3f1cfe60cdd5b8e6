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

from pipeline.common.errors import WeightsError

LEAST_SHARE = 0.9  # of the tensors: with fewer, what is trained is not a pretrained network
WRAPPERS = ("state_dict", "model", "model_state", "state_dict_ema")
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
# What the readers raise for damaged files; old .pth files are read by an unpickler that checks little.
DAMAGE = (
    *(pickle.UnpicklingError, SafetensorError, struct.error, RuntimeError, EOFError),
    *(ValueError, TypeError, LookupError, AssertionError),
)


def read(path: Path) -> dict[str, Tensor]:
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
