"""All randomness, named: a generator is a function of what it is for, never of what ran before.

So the order of an epoch, the augmentation of an image and the draw of a split do not depend on
the number of workers, on the number of ranks, or on whether a run was interrupted.
"""

import hashlib

import numpy as np


def seed_of(*names: int | str) -> int:
    """A seed in 0 .. 2**63 - 1 for a name such as ("augment", seed, epoch, index).

    The digest is BLAKE2b's, so a name has the same seed on every machine and Python version.
    """
    text = "\0".join(f"{type(name).__name__}:{name}" for name in names)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*names: int | str) -> np.random.Generator:
    """A NumPy generator of its own for a name."""
    return np.random.default_rng(seed_of(*names))
