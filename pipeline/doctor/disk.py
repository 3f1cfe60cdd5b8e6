"""Whether the run's files have room, and may be written."""

import shutil
import tempfile
from pathlib import Path

import torch

from pipeline.common.files import size_in_words
from pipeline.config.optim import Phase
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.image_store import JPEG_BYTES_PER_PIXEL
from pipeline.data.sources.source import SOURCES
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding
from pipeline.training.optimizer import build_optimizer


def disk(subject: CheckContext) -> Finding:
    """What is still to be written, checkpoints and data, against what is free on each disk."""
    config = subject.asked
    to_come = {
        "checkpoints": ("run.root", config.run.root, _checkpoints_to_come(subject)),
        "data": ("data.root", config.data.root, 0 if subject.real else _data_to_come(config)),
    }
    needed: dict[int, int] = {}
    free: dict[int, int] = {}
    words = []
    for what, (key, folder, size) in to_come.items():
        home = _existing(folder)
        if problem := _not_writable(home):
            return Finding(
                "no-go", f"{folder}: cannot be written ({problem})", f"set {key} to another folder"
            )
        disk = home.stat().st_dev
        needed[disk], free[disk] = needed.get(disk, 0) + size, shutil.disk_usage(home).free
        coming = f"{size_in_words(size)} to come" if size else "nothing to come"
        words.append(f"{what}: {coming}, {size_in_words(free[disk])} free in {folder}")
    figures = "; ".join(words)
    numbers = {f"{what}_bytes": size for what, (_, _, size) in to_come.items()}
    if any(needed[disk] > free[disk] for disk in needed):
        what_next = "free some space, or set run.root or data.root to another disk"
        return Finding("no-go", figures, what_next, numbers)
    return Finding("ok", figures, numbers=numbers)


def _checkpoints_to_come(subject: CheckContext) -> int:
    """Bytes of last, best, those that are kept, and the one being written, without those that are there."""
    keep = subject.config.train.keep_checkpoints
    there = sum(path.stat().st_size for path in subject.config.checkpoints_dir.glob("*.pt"))
    return max(0, (3 + (keep if keep > 1 else 0)) * checkpoint_bytes(subject) - there)


def checkpoint_bytes(subject: CheckContext) -> int:
    """Size of a checkpoint: weights, their average, and what the hungriest optimizer remembers of them."""
    state = subject.state
    model = sum(tensor.nbytes for tensor in state.model.state_dict().values())
    learned = sum(parameter.nbytes for parameter in state.model.parameters())
    remembered = max(_remembered(phase) for phase in subject.config.optim.resolved_phases)
    copies = 1 if state.ema is None else 2
    return int(copies * model + remembered * learned)


def _remembered(phase: Phase) -> float:
    """The size of what a phase's optimizer remembers over that of the parameters, seen at a small one."""
    small = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = build_optimizer([{"params": [small], "weight_decay": 0.0}], phase, lr=1e-3)
    small.grad = torch.ones_like(small)
    optimizer.step()
    tensors = [value for value in optimizer.state[small].values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() for tensor in tensors) / small.numel()


def _data_to_come(config: Config) -> int:
    """Bytes that `make data` still writes: the archive, the unpacked pictures, the store."""
    data, source = config.data, SOURCES[config.data.source]
    _, train, test = source.expected(data)
    per_pixel = 3.0 if data.store == "packed" else JPEG_BYTES_PER_PIXEL
    wider = 1.0 if data.resize == "squash" else 4 / 3
    store = round((train + test) * data.resize_px**2 * wider * per_pixel)
    return store if prepare.find_root(data) is not None else store + source.bytes_to_fetch(data)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _not_writable(folder: Path) -> str | None:
    """Why nothing can be written into a folder, or None: a file is made there and is gone again."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror
