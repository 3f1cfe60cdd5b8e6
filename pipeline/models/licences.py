"""The licence of the weights that a training begins with."""

from collections.abc import Mapping
from typing import Any

import timm

from pipeline.models import resnet


def licence_of(model: str, origin: Mapping[str, Any]) -> str | None:
    """The licence of a model's first weights: that of their package, or what timm says of those of its hub.

    None: not known, as for a file of the user, and for weights that timm has no licence of. The first
    runs of this program have recorded where their weights are from, without the licence.

    Args:
        model: its name in the configuration.
        origin: of the weights, as `build_model` gives it.
    """
    if "licence" in origin:
        return None if origin["licence"] is None else str(origin["licence"])
    if origin.get("source") == "random":
        return "random weights"
    if "sha256" in origin:
        return None
    published = timm.get_pretrained_cfg(resnet.WEIGHTS.get(model, model))
    return None if published is None else published.license


def in_words(origin: Mapping[str, Any]) -> str:
    """`licence apache-2.0`, for the lines that people read; empty for random weights."""
    if origin.get("source") == "random":
        return ""
    return f"licence {origin.get('licence') or 'not known'}"
