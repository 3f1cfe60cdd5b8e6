"""A check that all ranks, perhaps on machines with their own files, are about to do the same."""

from pipeline import __version__
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.key_effects import effect_of
from pipeline.config.load import differences
from pipeline.config.schema import Config
from pipeline.distributed.process_group import Ranks


def check_ranks_agree(config: Config, samples: str, ranks: Ranks) -> None:
    """Raise where a rank has another configuration, program version or sample table than rank 0.

    Args:
        samples: digest of the sample table.

    Raises:
        ConfigError: the configurations of the first such rank and of rank 0, or their program versions, differ.
        DataError: the sample tables differ.
    """
    first, *others = ranks.all_gather((config.model_dump(mode="json"), __version__, samples))
    for rank, (settings, version, digest) in enumerate(others, start=1):
        changed = [
            f"{key} {here} -> {there}"
            for key, here, there in differences(first[0], settings)
            if not effect_of(key).per_machine
        ]
        if changed or version != first[1]:
            difference = ", ".join(changed) or f"version {first[1]} -> {version}"
            raise ConfigError(
                f"rank {rank} has a different configuration from rank 0: {difference}; start all with the same"
            )
        if digest != first[2]:
            raise DataError(
                f"rank {rank} has a different sample table from rank 0; run `data` on every machine with the same "
                "archive and seed"
            )
