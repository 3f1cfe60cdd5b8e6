"""A recipe: the keys that determine the numbers of a training."""

from collections.abc import Collection
from typing import Any

from pipeline.config.key_effects import effect_of
from pipeline.config.load import differences


def changes(before: dict[str, Any], now: dict[str, Any], but_for: Collection[str] = ()) -> list[str]:
    """The differences between the recipes of two dumped configurations: `optim.lr 0.01 -> 0.02`.

    Args:
        but_for: dotted keys to ignore.
    """
    return [
        f"{key} {old} -> {new}"
        for key, old, new in differences(before, now)
        if key not in but_for and effect_of(key).changes_numbers
    ]
