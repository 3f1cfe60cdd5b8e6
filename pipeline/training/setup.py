"""What a configuration fixes before the first step, on one rank: data, the order of images, the clock, loaders."""

import numpy as np
import numpy.typing as npt

from pipeline.common.errors import ConfigError, DataError
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table, sampling, shared_memory
from pipeline.data.loader import build_loader, worker_count
from pipeline.data.transforms import Augmentation, CentreCrop
from pipeline.distributed import consistency
from pipeline.distributed.process_group import Ranks
from pipeline.training.schedule import images_per_step, step_clock


class TrainingSetup:
    """Everything that a configuration fixes, on one rank."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        """Load the prepared data.

        Raises:
            DataError: the data are not prepared, or have no training image.
            ConfigError: what the configuration asks for needs validation images, and there are none.
        """
        self.config, self.ranks = config, ranks
        data = prepare.load(config)
        self.train_rows = data.training_rows(config)
        self.val_rows = np.array(data.rows("val"), np.int64)
        if not len(self.train_rows):
            raise DataError("the sample table has no training image; check the data set's official split")
        if config.needs_validation and not len(self.val_rows):  # only the data tell, see `why_no_validation`
            raise ConfigError(
                f"{config.needs_validation[0]} needs validation, and no image of the data set validates; hold some out "
                "with data.val_fraction"
            )
        self.ids = data.samples["id"].to_numpy("int64", copy=True)
        self.labels = data.labels
        self.classes, self.samples = sample_table.class_names(data.samples), sample_table.digest(data.samples)
        self.gaps, self.taxonomy = sample_table.gaps(data.samples), data.taxonomy
        consistency.check_ranks_agree(config, self.samples, ranks)
        self.clock = step_clock(config, len(self.train_rows))
        self.last_step = min(self.clock.last_step, config.train.max_steps or self.clock.last_step)
        self._check_ranks()
        workers = config.data.workers
        shared_memory.check(config, worker_count(workers, ranks), ranks, validates=len(self.val_rows) > 0)
        self.train_loader = build_loader(data, Augmentation(config.data, config.seed), workers, ranks)
        self.val_loader = build_loader(data, CentreCrop(config.data), workers, ranks)

    def is_epoch_end(self, step: int) -> bool:
        """Whether an epoch, or the whole run, is over when `step` steps have been taken."""
        return step in self.clock.starts or step >= self.last_step

    def epoch_batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """The draws (`data.sampling`) of each batch of an epoch, over all ranks: int64 arrays."""
        config = self.config
        if config.data.sampler == "class_balanced":
            order = sampling.balanced_order(self.train_rows, self.labels, config.seed, epoch)
        else:
            order = sampling.epoch_order(self.train_rows, config.seed, epoch)
        return sampling.in_batches(order, images_per_step(config, epoch))

    def _check_ranks(self) -> None:
        smallest = min(len(self.train_rows) // steps for steps in self.clock.steps)
        if smallest < self.ranks.world_size:
            raise ConfigError(
                f"optim.batch_size: a batch of {smallest} images is too small for {self.ranks.world_size} ranks; "
                "take a larger batch or fewer ranks"
            )
