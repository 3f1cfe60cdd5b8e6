"""Sanity check of heat maps (Adebayo et al. 2018, arXiv:1810.03292): random weights, layer by layer from the head.

Maps that depend on what was learned lose the object on the way: the pointing game falls to chance. Maps that stay where
they were show edges, or where objects usually are.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import nn

from pipeline.common import seeding
from pipeline.evaluation import statistics
from pipeline.explain import pointing_game
from pipeline.explain.annotations import Floats
from pipeline.models.classifier import Classifier
from pipeline.training.optimizer import stages

NOTHING = "none"
"""the first row: the network as it was trained"""


def cascade(model: Classifier, seed: int) -> Iterator[tuple[str, Classifier]]:
    """The network as it is, then with more and more layers redrawn: the name of the last one, and the network.

    The head comes first, then the stages from the top to the stem, by timm's grouping, or without one the modules of the
    backbone. It is one copy that changes.
    """
    network = copy.deepcopy(model)
    name_of = {module: name.removeprefix("backbone.") for name, module in network.named_modules()}
    yield NOTHING, network
    head = [module for layer in network.new_layers for module in layer.modules()]
    steps = [("head", head)]
    grouped = hasattr(network.backbone, "group_matcher")
    parts = stages(network) if grouped else [[*part.modules()] for part in network.backbone.children()]
    for stage in reversed(parts):
        if modules := [module for module in stage if module not in head]:
            steps.append((_common([name_of[module] for module in modules]), modules))
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seeding.seed_of("randomised", seed))
        for name, modules in steps:
            for module in modules:
                draw_anew(module)
            yield name, network


def draw_anew(module: nn.Module) -> None:
    """Give a layer random weights, by He's rule (2015, arXiv:1502.01852), which keeps the variance; norms do nothing."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    reset: Any = getattr(module, "reset_parameters", None)
    if isinstance(weight, nn.Parameter) and weight.ndim > 1:
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
    elif reset is not None:
        reset()


def summary(
    name: str, maps: npt.NDArray[Any], trained: npt.NDArray[Any], boxes: Floats, image_px: int
) -> dict[str, Any]:
    """A row of the table: how well the maps find the object when the layers down to `name` are random.

    Keys: randomised (name); n (maps with a peak); empty (maps without); hits, rate with its Wilson 95 % interval
    rate_low and rate_high; chance (mean share of the crop in the box); elsewhere (how often a peak lies in the box of
    another picture: chance for maps that know where objects usually are); similarity (mean rank correlation of
    Spearman with the trained network's maps).

    Args:
        maps, trained: [n, h, w], 0..1.
        boxes: float64 [n, 4], x0 y0 x1 y1 in pixels of the crop.
    """
    peaks = np.stack([pointing_game.peak_of(grid, image_px) for grid in maps])
    found = ~np.isnan(peaks).any(axis=1)
    hit = (peaks[:, None] >= boxes[None, :, :2]).all(2) & (peaks[:, None] <= boxes[None, :, 2:]).all(2)
    own, n = int(np.diagonal(hit).sum()), int(found.sum())
    low, high = statistics.wilson(own, n)
    pairs = max(n * (len(boxes) - 1), 1)
    return {
        "randomised": name,
        "n": n,
        "empty": len(maps) - n,
        "hits": own,
        "rate": own / n if n else float("nan"),
        "rate_low": low,
        "rate_high": high,
        "chance": float(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).mean() / image_px**2),
        "elsewhere": float((hit.sum() - own) / pairs),
        "similarity": _similarity(maps, trained),
    }


def falls_to_chance(table: pd.DataFrame) -> bool:
    """Whether, with all layers random, the interval of the rate reaches down to what maps of other pictures have."""
    last = table.iloc[-1]
    return bool(last["n"] == 0 or last["rate_low"] <= max(last["chance"], last["elsewhere"]))


def _similarity(maps: npt.NDArray[Any], trained: npt.NDArray[Any]) -> float:
    """The mean rank correlation of maps that have different values; NaN without any."""
    pairs = [(a.ravel(), b.ravel()) for a, b in zip(maps, trained, strict=True) if np.ptp(a) and np.ptp(b)]
    return float(np.mean([spearmanr(a, b).statistic for a, b in pairs])) if pairs else float("nan")


def _common(names: list[str]) -> str:
    """What dotted names of one top-level module have in common at their beginning; of several modules, each of them."""
    shared: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        known = shared.setdefault(parts[0], parts)
        same = [a == b for a, b in zip(known, parts, strict=False)]
        shared[parts[0]] = known[: same.index(False) if False in same else len(same)]
    return ", ".join(".".join(parts) for parts in shared.values())
