"""Additions to a backbone: another pooling of its last feature map, and a second head."""

from typing import Any

import torch
from timm.layers.adaptive_avgmax_pool import (
    AdaptiveAvgMaxPool2d,
    AdaptiveCatAvgMaxPool2d,
    FastAdaptiveAvgMaxPool,
    FastAdaptiveCatAvgMaxPool,
    FastAdaptiveMaxPool,
    SelectAdaptivePool2d,
)
from torch import Tensor, nn

from pipeline.common.errors import ConfigError

P_AT_START, EPSILON = 3.0, 1e-6
BY_AMAX: dict[type[nn.Module], type[nn.Module]] = {
    nn.AdaptiveMaxPool2d: FastAdaptiveMaxPool,
    AdaptiveAvgMaxPool2d: FastAdaptiveAvgMaxPool,
    AdaptiveCatAvgMaxPool2d: FastAdaptiveCatAvgMaxPool,
}


class GeM(nn.Module):
    """Generalised-mean pooling with a learned power: [B, D, h, w] -> [B, D].

    Power 1 is the mean, infinity the maximum (Radenovic et al. 2018, arXiv:1711.02512).
    """

    def __init__(self, flatten: nn.Module) -> None:
        """flatten: makes [B, D] of [B, D, 1, 1], or is an identity where the backbone flattens later."""
        super().__init__()
        self.flatten = flatten
        self.p = nn.Parameter(torch.tensor([P_AT_START]))

    def forward(self, features: Tensor) -> Tensor:
        """features: [B, D, h, w]; smaller values count as 1e-6."""
        powers: Tensor = features.float().clamp(min=EPSILON).pow(self.p)
        pooled: Tensor = self.flatten(powers.mean((2, 3), keepdim=True).pow(1 / self.p))
        return pooled


def pool_by_gem(backbone: Any) -> GeM:
    """Put GeM in the place of the backbone's pooling.

    Raises:
        ConfigError: the backbone has no pooling of timm's over a feature map.
    """
    for name, module in backbone.named_modules():
        if isinstance(module, SelectAdaptivePool2d):
            gem = GeM(module.flatten)
            backbone.set_submodule(name, gem)
            return gem
    raise ConfigError(
        f"model.pool: gem needs a feature map to pool, but {type(backbone).__name__} has none; set model.pool=null"
    )


def pool_by_amax(backbone: nn.Module) -> None:
    """Have timm's pooling over all positions take its maximum by `torch.amax`, in place.

    The values are the same. Of equal maxima each gets an equal share of the gradient, and not the first one all of
    it; and the backward pass is deterministic on GPUs, where that of `torch.nn.AdaptiveMaxPool2d` is not.
    """
    for module in backbone.modules():
        if isinstance(module, SelectAdaptivePool2d):
            fast = BY_AMAX.get(type(module.pool))
            if fast is not None and module.pool.output_size == 1:
                module.add_module("pool", fast())


class MidLevelHead(nn.Module):
    """A classifier on the last but one stage (conv4_x of a ResNet): 1x1 convolution, ReLU, maximum over positions.

    It finds small parts where the last stage sees the whole. Its gradient stops at the backbone, as in
    the code of SnapMix (Huang et al. 2021, arXiv:2012.04846), where it adds 1.64 points on CUB.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """features [B, D, h, w] of the last but one stage -> logits [B, C]."""
        parts = torch.relu(self.conv(features.detach()))
        logits: Tensor = self.fc(parts.amax((2, 3)))
        return logits


def mid_level_head(backbone: Any, classes: int) -> MidLevelHead:
    """The head that fits a backbone.

    Raises:
        ConfigError: timm cannot give the feature maps of this backbone's stages.
    """
    stages = getattr(backbone, "feature_info", None)
    if not hasattr(backbone, "forward_intermediates") or not stages:
        raise ConfigError(
            f"model.mid_level_head: timm gives no feature maps of {type(backbone).__name__}; set it to false"
        )
    return MidLevelHead(list(stages)[-2]["num_chs"], classes)
