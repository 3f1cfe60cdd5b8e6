"""What torchrun sets in the environment, read without torch."""

import os

from pipeline.common.errors import ConfigError


def world_size() -> int:
    """The number of ranks that the environment names; 1 without one.

    Raises:
        ConfigError: it is not a number, or with several ranks a variable is missing that torchrun sets.
    """
    said = os.environ.get("WORLD_SIZE", "1")
    if not said.isdecimal() or int(said) < 1:
        raise ConfigError(f"WORLD_SIZE={said!r} is not a number of ranks; start with torchrun, or unset it")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if int(said) > 1 and missing:
        raise ConfigError(f"WORLD_SIZE is set, but {missing[0]} is not; start with torchrun, or unset it")
    return int(said)
