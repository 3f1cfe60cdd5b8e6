"""What every check knows from the start: the configuration, the ranks, the precision, a scratch folder."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.data import loader
from pipeline.distributed.process_group import Ranks
from pipeline.models.precision import Precision


@dataclass(frozen=True)
class CheckContext:
    """One configuration on one rank."""

    config: Config
    ranks: Ranks
    precision: Precision
    scratch: Path
    """a folder that is deleted when the checks are over"""

    @property
    def last_epoch(self) -> int:
        """The epoch with the largest images and the fewest frozen stages."""
        return self.config.train.epochs - 1

    @property
    def workers(self) -> int:
        """Loader processes of this rank."""
        return loader.worker_count(self.config.data.workers, self.ranks)

    @property
    def is_sharded(self) -> bool:
        """Whether no rank has the whole model."""
        return self.ranks.world_size > 1 and self.config.distributed.shard == "full"
