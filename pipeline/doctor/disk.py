"""The check of the disks: whether there is space for the files of the run, and permission to write them."""

import shutil
import tempfile
from pathlib import Path

import torch

from pipeline.common.files import size_in_words
from pipeline.config.optim import ResolvedPhase
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.image_store import JPEG_BYTES_PER_PIXEL
from pipeline.data.sources.source import source_of
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding
from pipeline.doctor.products import BuiltModel, OwnData, RunData
from pipeline.runs.directory import RunDirectory
from pipeline.training.optimizer import build_optimizer
from pipeline.training.state import TrainState


def space(context: CheckContext, data: RunData, model: BuiltModel) -> Finding:
    """Compare the bytes still to be written, checkpoints and data, with the free bytes of each disk."""
    config = context.config
    has_data = isinstance(data, OwnData)
    to_come = {
        "checkpoints": ("run.root", config.run.root, _checkpoints_to_come(config, model.state)),
        "data": ("data.root", config.data.root, 0 if has_data else _data_to_come(config)),
    }
    needed: dict[int, int] = {}
    free: dict[int, int] = {}
    parts = []
    for what, (key, folder, size) in to_come.items():
        nearest = _existing(folder)
        if problem := _write_error(nearest):
            return Finding(
                "no-go", f"{folder}: cannot be written ({problem})", f"set {key} to another folder"
            )
        disk = nearest.stat().st_dev
        needed[disk], free[disk] = needed.get(disk, 0) + size, shutil.disk_usage(nearest).free
        coming = f"{size_in_words(size)} to come" if size else "nothing to come"
        parts.append(f"{what}: {coming}, {size_in_words(free[disk])} free in {folder}")
    figures = "; ".join(parts)
    numbers = {f"{what}_bytes": size for what, (_, _, size) in to_come.items()}
    if any(needed[disk] > free[disk] for disk in needed):
        what_next = "free some space, or set run.root or data.root to another disk"
        return Finding("no-go", figures, what_next, numbers)
    return Finding("ok", figures, numbers=numbers)


def _checkpoints_to_come(config: Config, state: TrainState) -> int:
    """Bytes of last, best, the kept ones and the one being written, less the existing ones."""
    keep = config.train.keep_checkpoints
    files = {
        path.stat().st_ino: path.stat().st_size
        for path in RunDirectory(config.run_dir).checkpoints.glob("*.pt")
    }
    return max(0, (3 + (keep if keep > 1 else 0)) * checkpoint_bytes(config, state) - sum(files.values()))


def checkpoint_bytes(config: Config, state: TrainState) -> int:
    """Estimate a checkpoint's size: weights, their average, and the largest optimizer state of all phases."""
    model = sum(tensor.nbytes for tensor in state.model.state_dict().values())
    parameters = sum(parameter.nbytes for parameter in state.model.parameters())
    optimizer = parameters * max(map(_optimizer_bytes_per_byte, config.optim.resolved_phases))
    copies = 1 if state.ema is None else 2
    return int(copies * model + optimizer)


def _optimizer_bytes_per_byte(phase: ResolvedPhase) -> float:
    """The size of a phase's optimizer state over that of the parameters, measured on a small one."""
    parameter = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = build_optimizer([{"params": [parameter], "weight_decay": 0.0}], phase, lr=1e-3)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() for tensor in tensors) / parameter.numel()


def _data_to_come(config: Config) -> int:
    """Bytes that `plumage data` still writes: the archive, the unpacked pictures, the store."""
    data, source = config.data, source_of(config.data)
    _, train, test = source.expected
    per_pixel = 3.0 if data.store == "packed" else JPEG_BYTES_PER_PIXEL
    wider = 1.0 if data.resize == "squash" else 4 / 3
    store = round((train + test) * data.resize_px**2 * wider * per_pixel)
    return store if prepare.find_root(data) is not None else store + source.bytes_to_fetch()


def _existing(folder: Path) -> Path:
    """The folder, or the nearest path above it that exists: a folder, unless a file stands in the way."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _write_error(folder: Path) -> str | None:
    """Why nothing can be written into a folder, or None; a file is made there and deleted again."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror
