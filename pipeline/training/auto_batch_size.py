"""How many images fit into memory at once: measured, not guessed."""

import torch

from pipeline.common import console, hardware
from pipeline.common.errors import ConfigError
from pipeline.common.hardware import free_bytes
from pipeline.config.schema import Config
from pipeline.distributed.process_group import Ranks
from pipeline.models.classifier import Classifier
from pipeline.models.precision import Precision, autocast

USABLE = 0.85  # of the memory that is free: the optimizer and fragmentation need some
GROWTH_BYTES = 64 << 20  # from one trial to the next: enough to tell what an image takes


def auto_batch_size(config: Config, model: Classifier, precision: Precision, ranks: Ranks) -> int:
    """The images that are computed at once, over all ranks: `optim.batch_size`, or for auto what fits.

    Raises:
        ConfigError: not even two images fit.
    """
    if config.optim.batch_size != "auto":
        return config.optim.batch_size
    share = -(-config.optim.images_per_step // ranks.world_size)
    fitting = largest_that_fits(share, model, config.data.image_px, precision, ranks)
    images = in_equal_micro_batches(config, min(ranks.all_gather(fitting)), ranks)
    micro_batches = -(-config.optim.images_per_step // images)
    console.say(f"batch  {images} images at once, {micro_batches} a step: as many as fit")
    return images


def in_equal_micro_batches(config: Config, fitting: int, ranks: Ranks) -> int:
    """The images computed at once, over all ranks, so that a step has equal micro-batches.

    Args:
        fitting: images that fit on each rank.

    Raises:
        ConfigError: not even two images fit.
    """
    if fitting < 2:
        raise ConfigError(
            f"optim.batch_size: auto finds no room for two images of {config.data.image_px} px; "
            "take a smaller model or data.image_px"
        )
    share = -(-config.optim.images_per_step // ranks.world_size)
    micro_batches = -(-share // fitting)
    return -(-share // micro_batches) * ranks.world_size


def largest_that_fits(most: int, model: Classifier, image_px: int, precision: Precision, ranks: Ranks) -> int:
    """Images that fit into this rank's memory at once, `most` at the most.

    Batches of 2, 4, 8, ... images are learned from until the peak of memory has grown enough to tell what
    an image takes; the rest is arithmetic. The model is as before afterwards.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        return _measure(most, model, image_px, precision, ranks)
    finally:
        model.load_state_dict(before)


def _measure(most: int, model: Classifier, image_px: int, precision: Precision, ranks: Ranks) -> int:
    images, peak = min(2, most), _peak(model, min(2, most), image_px, precision, ranks.device)
    while images < most:
        more = min(2 * images, most)
        grown = _peak(model, more, image_px, precision, ranks.device) - peak
        if grown > GROWTH_BYTES:
            sharing = ranks.local_world_size if ranks.device.type == "cpu" else 1
            room = USABLE * free_bytes(ranks.device) / sharing
            return min(most, more + int(room / (grown / (more - images))))
        images, peak = more, peak + grown
    return most


def _peak(model: Classifier, images: int, image_px: int, precision: Precision, device: torch.device) -> int:
    """The peak of memory, in bytes, after learning from a batch."""
    batch = torch.zeros((images, 3, image_px, image_px), dtype=torch.uint8, device=device)
    model.train()
    with autocast(device, precision):
        loss = model(batch.contiguous(memory_format=torch.channels_last)).float().sum()
    loss.backward()
    model.zero_grad(set_to_none=True)
    return hardware.peak_bytes(device)
