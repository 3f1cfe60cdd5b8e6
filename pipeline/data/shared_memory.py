"""The room in `/dev/shm`, through which batches go from loader processes to their rank."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common.errors import ConfigError
from pipeline.common.files import size_in_words
from pipeline.config.schema import Config
from pipeline.distributed.process_group import Ranks

PREFETCHED = 2  # batches that a loader process has ready
IN_USE = 2  # batches of a rank: the one that it computes, and the one that it asks for
FOLDER = Path("/dev/shm")
REMEDY = "give the container more (docker run --shm-size=8g, or --ipc=host), or set data.workers=0"


def free_bytes() -> int | None:
    """Bytes that are free; None on a system without the folder (macOS)."""
    return shutil.disk_usage(FOLDER).free if FOLDER.is_dir() else None


def has_room(images: int, image_px: int) -> bool:
    """Whether images have room there."""
    free = free_bytes()
    return free is None or images * _image_bytes(image_px) <= free


def needed_bytes(config: Config, workers: int, ranks: Ranks, validates: bool | None = None) -> int:
    """Bytes that the batches of a training take at most, on this machine.

    The loader of a validation between two steps works while that of the training waits with its batches.

    Args:
        workers: loader processes of each rank.
        validates: whether there are validation images; None: as far as the configuration tells.
    """
    if not workers:
        return 0
    data = config.data
    sizes = [(config.optim.images_per_step, data.image_px)]
    sizes += [(stage.images_per_step or sizes[0][0], stage.image_px) for stage in data.progressive]
    train = max(math.ceil(images / ranks.world_size) * _image_bytes(px) for images, px in sizes)
    validates = config.why_no_validation is None if validates is None else validates
    predicts = validates or config.train.start_from == "probe"
    val = config.eval.batch_size * _image_bytes(data.image_px) if predicts else 0
    batch = max(train, val) if config.train.eval_every_steps is None else train + val
    return ranks.local_world_size * (workers * PREFETCHED + IN_USE) * batch


def check(config: Config, workers: int, ranks: Ranks, *, validates: bool) -> None:
    """See that the batches of a training have room, before the first loader process starts.

    Raises:
        ConfigError: they have not.
    """
    needed, free = needed_bytes(config, workers, ranks, validates), free_bytes()
    if needed and free is not None and free < needed:
        raise ConfigError(
            f"data.workers: {workers * ranks.local_world_size} loader processes need {size_in_words(needed)} of "
            f"{FOLDER} for their batches, and {size_in_words(free)} are free; {REMEDY}"
        )


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor there.

    Raises:
        ConfigError: there is no room.
    """
    size_bytes = math.prod(shape) * dtype.itemsize
    try:
        storage = torch.UntypedStorage._new_shared(size_bytes)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        size = size_in_words(size_bytes)
        raise ConfigError(f"data.workers: no room for {size} in {FOLDER} ({error}); {REMEDY}") from error
    return torch.empty(0, dtype=dtype).set_(storage).view(*shape)


def _image_bytes(image_px: int) -> int:
    return 3 * image_px**2
