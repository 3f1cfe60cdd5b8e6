"""Weights from a file into a model: pretrained ones, however they were saved, and those of a checkpoint."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

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
AVERAGES = {"state_dict_ema", "model_ema", "ema"}
WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "model_state")
MOST_WRAPPERS = 3  # in one another
BODY = "backbone."  # of the networks of this program, beside a second head, and of others
PREFIXES = ("module.", "model.", BODY, "_orig_mod.")
# What the readers raise for damaged files; old .pth files are read by an unpickler that checks little.
DAMAGE = (
    *(
        pickle.UnpicklingError,
        SafetensorError,
        zipfile.BadZipFile,
        struct.error,
        RuntimeError,
        EOFError,
        OSError,
    ),
    *(ValueError, TypeError, LookupError, AssertionError, ArithmeticError, AttributeError),
)


class StateDict(NamedTuple):
    """The tensors of a file by name, and where in it they stood: `state_dict_ema`, say; empty at the top."""

    tensors: dict[str, Tensor]
    entry: str

    @property
    def is_average(self) -> bool:
        """Whether they are the average of a training's weights."""
        return not AVERAGES.isdisjoint(self.entry.split("."))


def check_is_there(path: Path) -> None:
    """Raise a `WeightsError` where there is no such file."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; give its path as model.weights=PATH")


def read_state_dict(path: Path) -> StateDict:
    """A state dict of timm or torchvision, as safetensors or as read by torch with `weights_only`.

    Wrappers ("state_dict": {...}) and prefixes ("module.") are taken off; of a file of a training with an average of
    the weights, the average is taken, as timm does, for that is what was validated.

    Raises:
        WeightsError: the file is missing, damaged, or holds no tensors by name.
    """
    check_is_there(path)
    with path.open("rb") as stream:
        is_safetensors = stream.read(9)[8:] == b"{"  # a header of JSON behind its length
        stream.seek(0)
        try:
            content: Any = load_file(path) if is_safetensors else load_checked(stream)
        except DAMAGE as error:
            raise WeightsError(
                f"{path}: not a file of only tensors and plain types ({type(error).__name__}); "
                "save `model.state_dict()` with torch.save or safetensors and give that file"
            ) from error
    found = _unwrapped(content, [])
    if found is None:
        raise WeightsError(
            f"{path}: holds no named tensors; save `model.state_dict()` of timm or torchvision"
        )
    state = found.tensors
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    body = {name.removeprefix(BODY): value for name, value in state.items() if name.startswith(BODY)}
    return StateDict(body or state, found.entry)


def load_checked(stream: IO[bytes]) -> Any:
    """Tensors and plain types from a file of torch.save, on the CPU, if its checksums, which torch ignores, are right.

    Files from before torch 1.6, and those saved with `set_crc32_options(False)`, have no checksums.

    Raises:
        DAMAGE: what torch and the reader of zip archives raise for damaged files.
    """
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            for member in archive.infolist():
                if member.CRC:
                    with archive.open(member) as part:
                        while part.read(files.CHUNK_BYTES):  # the end of a member compares its checksum
                            pass
    stream.seek(0)
    return torch.load(stream, map_location="cpu", weights_only=True)


def _unwrapped(content: Any, place: list[str]) -> StateDict | None:
    """The tensors of a mapping, or of the first wrapper in it that has some."""
    if not isinstance(content, Mapping) or len(place) > MOST_WRAPPERS:
        return None
    for wrapper in WRAPPERS:
        if found := _unwrapped(content.get(wrapper), [*place, wrapper]):
            return found
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return StateDict(tensors, ".".join(place)) if tensors else None


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
        source (the path), sha256 of the file, number of tensors loaded, their share of the backbone's, and `average`
        where they are the average of a training's weights: its name in the file.

    Raises:
        WeightsError: the file is missing or damaged, less than 90% of the backbone's tensors fit, or they cannot be
            those of a trained network.
    """
    return load_state_dict(backbone, read_state_dict(path), path)


def load_state_dict(backbone: Any, found: StateDict, path: Path) -> dict[str, Any]:
    """Load what was read from a file, see `load_pretrained`.

    Args:
        found: tensors by the names that the backbone has.
    """
    tensors = backbone_tensors(backbone)
    fitting = {
        name: found.tensors[name]
        for name, tensor in tensors.items()
        if name in found.tensors and found.tensors[name].shape == tensor.shape
    }
    _check_numbers(fitting, path)
    share = len(fitting) / len(tensors)
    if share < 1:
        absent = ", ".join([name for name in tensors if name not in fitting][:ABSENT_NAMED])
        fit = f"{path}: fits {len(fitting)} of the model's {len(tensors)} tensors by name and shape (not: {absent} ...)"
        if share < MIN_SHARE:
            raise WeightsError(f"{fit}; give the weights of this exact model or set model.pretrained=false")
        console.warn(f"{fit}; the others start from random values")
    backbone.load_state_dict(fitting, strict=False)
    digest = files.digest_of_file(path)
    average = {"average": found.entry} if found.is_average else {}
    return {"source": str(path), "sha256": digest, "tensors": len(fitting), "share": share, **average}


def _check_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse what fits by name and shape but cannot be the weights of a trained network.

    Raises:
        WeightsError: says which tensors, and what they hold.
    """
    if other := [
        name for name, t in tensors.items() if not t.is_floating_point() or t.layout != torch.strided
    ]:
        kinds = sorted({str(tensors[name].dtype).removeprefix("torch.") for name in other})
        raise WeightsError(
            f"{path}: holds {' and '.join(kinds)} numbers where dense floats are expected, in {name_some(other)}; give "
            "the weights as float32 or float16, not quantised"
        )
    numbers = {name: tensor.float() for name, tensor in tensors.items()}
    if wrong := not_finite(numbers):
        raise WeightsError(
            f"{path}: holds numbers that are not finite in float32, in {name_some(wrong)}; give a file of a training "
            "that did not diverge"
        )
    if wrong := [name for name, t in numbers.items() if name.endswith("running_var") and (t < 0).any()]:
        raise WeightsError(f"{path}: holds negative variances, in {name_some(wrong)}; give another file")
    if numbers and not any(tensor.any() for tensor in numbers.values() if tensor.ndim > 1):
        raise WeightsError(f"{path}: all weights in it are zero; give the file of a trained network")


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
        CheckpointError: they are the weights of another model, or numbers of another type.
    """
    tensors = model.state_dict()
    if other := [name for name in weights.keys() & tensors if weights[name].dtype != tensors[name].dtype]:
        raise CheckpointError(
            f"{path}: damaged: numbers are of a different type from the model's, in {name_some(sorted(other))}; use "
            "another checkpoint of this run"
        )
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
