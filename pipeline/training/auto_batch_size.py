"""How many images fit into memory at once: measured, and tried."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pipeline.common import console, hardware
from pipeline.common.errors import ConfigError
from pipeline.config.optim import ResolvedPhase
from pipeline.config.schema import Config
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.models.classifier import Classifier, evaluating, freeze_batchnorm
from pipeline.models.precision import Precision, autocast
from pipeline.training import phases, trial
from pipeline.training.freezing import FreezeSchedule
from pipeline.training.optimizer import build_optimizer, parameter_groups
from pipeline.training.state import TrainState
from pipeline.training.step import StepSettings, largest_share, train_step

USABLE = 0.85  # of the memory that is free: fragmentation needs some
GROWTH_BYTES = 64 << 20  # between two trials, at least: enough to tell what an image takes
MOST_EXTRAPOLATED = 16  # times the growth that was measured


def auto_batch_size(config: Config, model: Classifier, precision: Precision, ranks: Ranks) -> int:
    """The images that are computed at once, over all ranks: `optim.batch_size`, or for auto what fits.

    Raises:
        ConfigError: not even two images fit, or the batch of evaluation does not.
    """
    if config.optim.batch_size != "auto":
        return config.optim.batch_size
    share = largest_share(config.optim.images_per_step, ranks.world_size)
    fitting = min(ranks.all_gather(largest_that_fits(share, config, model, precision, ranks)))
    images = in_equal_micro_batches(config, fitting, ranks)
    check_evaluation(fitting, config, model, precision, ranks)
    micro_batches = math.ceil(config.optim.images_per_step / images)
    console.say(f"batch  {images} images at once, {micro_batches} a step: as many as fit")
    return images


def resumed_batch_size(
    before: int, config: Config, model: Classifier, precision: Precision, ranks: Ranks
) -> int:
    """The images that are computed at once, over all ranks, by a run that goes on; `before` are the checkpoint's.

    They stay the same, so that the run stays the same to the bit. Where the batch size is auto and a step of so many
    does not fit, as on a smaller GPU or on fewer of them, what fits is found anew, and said.
    """
    if config.optim.batch_size != "auto":
        return before
    share = largest_share(before, ranks.world_size)
    if all(ranks.all_gather(can_step(share, config, model, precision, ranks))):
        return before
    images = auto_batch_size(config, model, precision, ranks)
    console.warn(
        f"optim.batch_size: auto goes on with {images} images at once, as the {before} of the checkpoint do not fit "
        "here; a step is of as many images as before, and batch norm and mixing see fewer of them together"
    )
    return images


def in_equal_micro_batches(config: Config, fitting: int, ranks: Ranks) -> int:
    """The images computed at once, over all ranks, so that a step has equal micro-batches.

    Args:
        fitting: images that fit on each rank.

    Raises:
        ConfigError: not even two images fit.
    """
    share = largest_share(config.optim.images_per_step, ranks.world_size)
    if fitting < min(2, share):
        raise ConfigError(
            f"optim.batch_size: auto finds no room for two images of {config.data.image_px} px; "
            "take a smaller model or data.image_px"
        )
    micro_batches = math.ceil(share / fitting)
    return math.ceil(share / micro_batches) * ranks.world_size


def largest_that_fits(
    most: int, config: Config, model: Classifier, precision: Precision, ranks: Ranks
) -> int:
    """Images that fit into this rank's memory at once, `most` at the most; 0: not even two.

    Steps of 2, 4, 8, ... images are taken until the peak of memory has grown enough to tell what an image takes; the
    rest is arithmetic. A step of the answer is taken too, and of half of it where memory does not suffice. The model
    is as before afterwards.
    """
    with trial.undone(model, ranks.device):
        return _Trials(most, config, model, precision, ranks).largest()


def can_step(images: int, config: Config, model: Classifier, precision: Precision, ranks: Ranks) -> bool:
    """Whether this rank's memory suffices for a step of `images` at once. The model is as before afterwards."""
    with trial.undone(model, ranks.device):
        return _Trials(images, config, model, precision, ranks).peak_of(images) is not None


def check_evaluation(
    fitting: int, config: Config, model: Classifier, precision: Precision, ranks: Ranks
) -> None:
    """Try a batch of evaluation, where it has more images than the `fitting` of a step: not after hours.

    Raises:
        ConfigError: memory does not suffice for it.
    """
    images = config.eval.batch_size
    while images > fitting and not _can_evaluate(images, config, model, precision, ranks.device):
        images //= 2
    images = min(ranks.all_gather(images))
    if images < config.eval.batch_size:
        raise ConfigError(
            f"eval.batch_size: memory does not suffice for a batch of {config.eval.batch_size} images of "
            f"{config.data.image_px} px; set eval.batch_size={images}, which was tried"
        )


def _can_evaluate(
    images: int, config: Config, model: Classifier, precision: Precision, device: torch.device
) -> bool:
    try:
        with evaluating(model), hardware.repeatable_convolutions(), autocast(device, precision):
            model(_black(images, config.data.image_px).image.to(device))
        return True
    except Exception as error:
        if not hardware.is_out_of_memory(error):
            raise
    trial.empty_cache(device)
    return False


def _black(images: int, side_px: int) -> Batch:
    """Pictures without light, in the memory layout of the loader."""
    pixels = torch.zeros((images, 3, side_px, side_px), dtype=torch.uint8)
    label = torch.zeros(images, dtype=torch.int64)
    return Batch(pixels.contiguous(memory_format=torch.channels_last), label, label)


def most_remembered(phases: Sequence[ResolvedPhase]) -> ResolvedPhase:
    """The phase whose optimizer remembers most numbers for each weight; of equals, the first."""
    return phases[0] if len(phases) == 1 else max(phases, key=_numbers_remembered)


def _numbers_remembered(phase: ResolvedPhase) -> int:
    weight = nn.Parameter(torch.ones(64, 64))
    weight.grad = torch.ones_like(weight)
    optimizer = build_optimizer([{"params": [weight], "weight_decay": phase.weight_decay}], phase, lr=1e-3)
    optimizer.step()
    return sum(
        tensor.numel() for tensor in pytree.tree_leaves(dict(optimizer.state)) if torch.is_tensor(tensor)
    )


class _Trials:
    """Training steps on black pictures, of one rank alone, with all that a step of the run keeps in memory."""

    def __init__(
        self, most: int, config: Config, model: Classifier, precision: Precision, ranks: Ranks
    ) -> None:
        self.most, self.config, self.device = most, config, ranks.device
        # On the CPU, the ranks of a machine share its memory.
        self.sharing = ranks.local_world_size if ranks.device.type == "cpu" else 1
        phase = most_remembered(config.optim.resolved_phases)
        # DDP holds its buckets of gradients from the start of a step on.
        self.buckets = [torch.empty_like(weight) for weight in model.parameters() if ranks.world_size > 1]
        FreezeSchedule(config, model).apply(config.train.epochs - 1)  # the fewest frozen stages
        if config.distributed.sync_batchnorm:
            freeze_batchnorm(model)  # ranks take different numbers of trials, and would wait for one another
        groups = parameter_groups(model, config.optim, weight_decay=phase.weight_decay)
        self.rates = phases.Rates(phase.lr or config.optim.lr, phase.momentum)
        optimizer = build_optimizer(groups, phase, lr=self.rates.lr)
        scaler = torch.amp.GradScaler(self.device.type, enabled=False)  # it would skip the first steps
        self.state = TrainState(model, optimizer, scaler, None, phases.first(config.optim))
        # The way of mixing that takes most memory, if any: those that ask the model (SnapMix first), then mixup.
        ways = sorted(config.train.mix, key=lambda way: (way.follows_activation, way.name), reverse=True)[:1]
        self.settings = StepSettings(
            seed=config.seed,
            label_smoothing=config.train.label_smoothing,
            mix=tuple(way.model_copy(update={"probability": 1.0}) for way in ways),
            clip_norm=config.optim.clip_norm,
            micro_batch_size=most,
            precision=precision,
            ranks=Ranks.single(self.device),
        )

    def largest(self) -> int:
        """As `largest_that_fits`."""
        trial.reset_peak(self.device)
        images, peak, is_own = 0, hardware.peak_bytes(self.device), False
        ceiling, image_bytes = peak + USABLE * hardware.free_bytes(self.device) / self.sharing, 0.0
        while images < self.most:
            # An image takes at most its share of all that is in use: with as much room, twice the images fit.
            next_ones = max(1, int(images * min(1, (ceiling - peak) / peak))) if images else 2
            if image_bytes:
                next_ones = min(next_ones, int((ceiling - peak) / image_bytes))
            more = min(images + next_ones, self.most)
            new_peak = self.peak_of(more) if more > images else None
            if new_peak is None:
                return images
            grown, room = new_peak - peak, ceiling - new_peak
            # A peak never falls on the CPU: growth tells what images take only above a peak of the trial before.
            if is_own:
                image_bytes = max(0.0, grown / (more - images))
            if is_own and grown > max(GROWTH_BYTES, room / MOST_EXTRAPOLATED):
                return self._halved(min(self.most, more + max(0, int(room / image_bytes))), more)
            images, peak, is_own = more, new_peak, grown > 0 or self.device.type == "cuda"
        return images

    def _halved(self, images: int, fitting: int) -> int:
        """The first of `images`, half of them, ... that a step can be taken of; at least `fitting`."""
        while images > fitting:
            if self.peak_of(images) is not None:
                return images
            images //= 2
        return fitting

    def peak_of(self, images: int) -> int | None:
        """The peak of memory, in bytes, after a step of `images`; None where memory does not suffice."""
        batch = _black(images, self.config.data.image_px)
        try:
            for _ in range(2 if self.device.type == "cuda" else 1):  # cuDNN tries algorithms in the first
                trial.reset_peak(self.device)
                train_step(self.state, self.state.model, batch, images, self.rates, self.settings)
            return hardware.peak_bytes(self.device)
        except Exception as error:
            if not hardware.is_out_of_memory(error):
                raise
        self.state.optimizer.zero_grad(set_to_none=True)
        trial.empty_cache(self.device)
        return None
