"""Batch norm over the images of all ranks, where each rank alone has too few of them."""

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

Module = TypeVar("Module", bound=nn.Module)
BatchNorm = nn.modules.batchnorm._BatchNorm  # torch's base of them all; it has no public one


class SyncBatchNorm2d(nn.BatchNorm2d):
    """What `torch.nn.SyncBatchNorm` is on GPUs, on any device: it has no kernel for CPUs.

    Ranks may have unlike numbers of images. Without a process group, and in evaluation mode, it is
    `torch.nn.BatchNorm2d`.
    """

    def __init__(self, other: nn.BatchNorm2d) -> None:
        """Take over the weights, the statistics, and what timm lets follow in the same module."""
        super().__init__(other.num_features, other.eps, other.momentum)
        self.load_state_dict(other.state_dict())
        self.drop, self.act = getattr(other, "drop", nn.Identity()), getattr(other, "act", nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W], of the input's dtype; statistics are taken in float32."""
        if self.training and dist.is_initialized():
            normalised = self._over_all_ranks(images.float()).to(images.dtype)
        else:
            normalised = super().forward(images)
        after: Tensor = self.act(self.drop(normalised))
        return after

    def _over_all_ranks(self, images: Tensor) -> Tensor:
        # Mean first and then the squares around it: the difference of two large numbers would lose digits.
        summed = images.sum((0, 2, 3))
        count = images.new_tensor([images.numel() // self.num_features])
        summed, count = _sum(torch.cat([summed, count])).tensor_split([self.num_features])
        mean = (summed / count).view(1, -1, 1, 1)
        variance = _sum((images - mean).square().sum((0, 2, 3))) / count
        self._remember(mean.detach().flatten(), (variance * count / (count - 1)).detach())
        scale = (variance + self.eps).rsqrt() * self.weight
        normalised: Tensor = (images - mean) * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return normalised

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None, "as made"
        assert self.running_var is not None, "as made"
        assert self.num_batches_tracked is not None, "as made"
        assert self.momentum is not None, "timm's batch norms have one"
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def _sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks; gradients pass through."""
    summed: Tensor = all_reduce(tensor)  # type: ignore[no-untyped-call]
    return summed


def synchronise(model: Module, device: torch.device) -> Module:
    """The model with batch norms over all ranks; the names of its weights stay."""
    if device.type == "cuda":
        converted: Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, SyncBatchNorm2d(module))
    return model


def batchnorms(model: nn.Module) -> list[BatchNorm]:
    """All batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def running_statistics(norms: Iterable[BatchNorm]) -> list[Tensor]:
    """The running means and variances that learn: of batch norms in training mode, float32 [C] each."""
    learning = (norm for norm in norms if norm.training)
    buffers = [statistics for norm in learning for statistics in (norm.running_mean, norm.running_var)]
    return [statistics for statistics in buffers if statistics is not None]
