"""How many images fit into memory at once: measured, and tried."""

import torch

from pipeline.common import console, hardware
from pipeline.common.errors import ConfigError
from pipeline.config.schema import Config
from pipeline.data.loader import Batch
from pipeline.distributed.process_group import Ranks
from pipeline.models.classifier import Classifier, freeze_batchnorm
from pipeline.models.precision import Precision
from pipeline.training import phases
from pipeline.training.freezing import FreezeSchedule
from pipeline.training.optimizer import build_optimizer, parameter_groups
from pipeline.training.state import TrainState
from pipeline.training.step import StepSettings, train_step

USABLE = 0.85  # of the memory that is free: fragmentation needs some
GROWTH_BYTES = 64 << 20  # between two trials, at least: enough to tell what an image takes
MOST_EXTRAPOLATED = 16  # times the growth that was measured


def auto_batch_size(config: Config, model: Classifier, precision: Precision, ranks: Ranks) -> int:
    """The images that are computed at once, over all ranks: `optim.batch_size`, or for auto what fits.

    Raises:
        ConfigError: not even two images fit.
    """
    if config.optim.batch_size != "auto":
        return config.optim.batch_size
    share = -(-config.optim.images_per_step // ranks.world_size)
    fitting = largest_that_fits(share, config, model, precision, ranks)
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
    share = -(-config.optim.images_per_step // ranks.world_size)
    if fitting < min(2, share):
        raise ConfigError(
            f"optim.batch_size: auto finds no room for two images of {config.data.image_px} px; "
            "take a smaller model or data.image_px"
        )
    micro_batches = -(-share // fitting)
    return -(-share // micro_batches) * ranks.world_size


def largest_that_fits(
    most: int, config: Config, model: Classifier, precision: Precision, ranks: Ranks
) -> int:
    """Images that fit into this rank's memory at once, `most` at the most; 0: not even two.

    Steps of 2, 4, 8, ... images are taken until the peak of memory has grown enough to tell what an image takes; the
    rest is arithmetic. A step of the answer is taken too, and of half of it where memory does not suffice. The model
    is as before afterwards.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        return _Trials(most, config, model, precision, ranks).largest()
    finally:
        model.load_state_dict(before)
        _reset_peak(ranks.device)


class _Trials:
    """Training steps on black pictures, of one rank alone."""

    def __init__(
        self, most: int, config: Config, model: Classifier, precision: Precision, ranks: Ranks
    ) -> None:
        self.most, self.config, self.device = most, config, ranks.device
        # On the CPU, the ranks of a machine share its memory.
        self.sharing = ranks.local_world_size if ranks.device.type == "cpu" else 1
        phase = config.optim.resolved_phases[0]
        FreezeSchedule(config, model).apply(config.train.epochs - 1)  # the fewest frozen stages
        if config.distributed.sync_batchnorm:
            freeze_batchnorm(model)  # ranks take different numbers of trials, and would wait for one another
        groups = parameter_groups(model, config.optim, weight_decay=phase.weight_decay)
        self.rates = phases.Rates(phase.lr or config.optim.lr, phase.momentum)
        optimizer = build_optimizer(groups, phase, lr=self.rates.lr)
        scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self.state = TrainState(model, optimizer, scaler, None, phases.first(config.optim))
        # The way of mixing that takes most memory, if any: SnapMix, then mixup.
        ways = sorted(config.train.mix, key=lambda way: way.name, reverse=True)[:1]
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
        _reset_peak(self.device)
        images, peak, is_own = 0, hardware.peak_bytes(self.device), False
        ceiling, image_bytes = peak + USABLE * hardware.free_bytes(self.device) / self.sharing, 0.0
        while images < self.most:
            # An image takes at most its share of all that is in use: with as much room, twice the images fit.
            next_ones = max(1, int(images * min(1, (ceiling - peak) / peak))) if images else 2
            if image_bytes:
                next_ones = min(next_ones, int((ceiling - peak) / image_bytes))
            more = min(images + next_ones, self.most)
            trial = self._peak(more) if more > images else None
            if trial is None:
                return images
            grown, room = trial - peak, ceiling - trial
            # A peak never falls on the CPU: growth tells what images take only above a peak of the trial before.
            if is_own:
                image_bytes = max(0.0, grown / (more - images))
            if is_own and grown > max(GROWTH_BYTES, room / MOST_EXTRAPOLATED):
                return self._halved(min(self.most, more + max(0, int(room / image_bytes))), more)
            images, peak, is_own = more, trial, grown > 0 or self.device.type == "cuda"
        return images

    def _halved(self, images: int, fitting: int) -> int:
        """The first of `images`, half of them, ... that a step can be taken of; at least `fitting`."""
        while images > fitting:
            if self._peak(images) is not None:
                return images
            images //= 2
        return fitting

    def _peak(self, images: int) -> int | None:
        """The peak of memory, in bytes, after a step of `images`; None where memory does not suffice."""
        side_px = self.config.data.image_px
        pixels = torch.zeros((images, 3, side_px, side_px), dtype=torch.uint8)
        label = torch.zeros(images, dtype=torch.int64)
        batch = Batch(pixels.contiguous(memory_format=torch.channels_last), label, label)
        try:
            for _ in range(2 if self.device.type == "cuda" else 1):  # cuDNN tries algorithms in the first
                _reset_peak(self.device)
                train_step(self.state, self.state.model, batch, images, self.rates, self.settings)
            return hardware.peak_bytes(self.device)
        except Exception as error:
            if not hardware.is_out_of_memory(error):
                raise
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
