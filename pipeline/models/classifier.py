"""A network with its normalisation and its head: uint8 pictures in, logits out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.common.errors import ConfigError
from pipeline.models.heads import GeM, MidLevelHead
from pipeline.models.precision import autocast, compute_in_float32

Module = TypeVar("Module", bound=nn.Module)


class Classifier(nn.Module):
    """A backbone with its heads; it normalises, so that uint8 is copied to the device and no caller can forget it."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        mid_head: MidLevelHead | None = None,
        *,
        grey: bool = False,
    ) -> None:
        """mean, std: of each RGB channel, 0..1. grey: the backbone takes one channel, the mean of the three."""
        super().__init__()
        self.backbone = backbone
        self.grey = grey
        self.mid_head = mid_head
        compute_in_float32(self.head)
        if mid_head is not None:
            compute_in_float32(mid_head.fc)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B, 3, H, W] -> logits, float32 (the heads compute in it under autocast too).

        In evaluation [B, C], the mean over the heads; in training [heads, B, C], each with a loss of its own.
        """
        logits = self._heads(self.normalised(images))
        return logits if self.training else logits.mean(0)

    def normalised(self, images: Tensor) -> Tensor:
        """The input of the backbone: uint8 [B, 3, H, W] -> float32 [B, 3, H, W], or [B, 1, H, W] where it is grey."""
        normalised: Tensor = (images - self.mean) / self.std
        return normalised.mean(1, keepdim=True) if self.grey else normalised

    def _heads(self, images: Tensor) -> Tensor:
        backbone: Any = self.backbone
        if self.mid_head is None:
            return torch.stack([backbone(images)])  # a copy: FSDP2 does not allow views
        last, (mid, _) = backbone.forward_intermediates(images, indices=2)
        return torch.stack([backbone.forward_head(last), self.mid_head(mid)])

    @property
    def head(self) -> nn.Module:
        """The last layer of the backbone."""
        return head_of(self.backbone)

    @property
    def new_layers(self) -> list[nn.Module]:
        """The layers that are not pretrained: the heads, and a pooling that learns."""
        pools = [module for module in self.backbone.modules() if isinstance(module, GeM)]
        return [self.head, *pools, *([self.mid_head] if self.mid_head else [])]

    def class_activation(self, images: Tensor, labels: Tensor) -> Tensor:
        """How much each position of an image speaks for a class: [B, 3, H, W], int64 [B] -> float32 [B, h, w].

        Class activation maps (Zhou et al. 2016, arXiv:1512.04150): the last feature map, weighted by the
        classifier's row of the class.

        Raises:
            ConfigError: the backbone does not end in a feature map, pooled, and one linear layer.
        """
        features, weight = self._evidence(images, labels)
        with autocast(features.device, "fp32"):
            return torch.einsum("bdhw,bd->bhw", features, weight)

    def class_activations(self, images: Tensor, labels: Tensor) -> Tensor:
        """The maps of several classes: [B, 3, H, W], int64 [B, K] -> float32 [B, K, h, w]; see `class_activation`."""
        features, weight = self._evidence(images, labels)
        with autocast(features.device, "fp32"):
            return torch.einsum("bdhw,bkd->bkhw", features, weight)

    def part_activation(self, images: Tensor, labels: Tensor, draws: Tensor) -> Tensor:
        """The map of one channel that speaks for a class: [B, 3, H, W], int64 [B] -> float32 [B, h, w], at least 0.

        A channel is drawn by the root of its share in the class activation; channels that speak against the class, and
        places where a channel is negative, count as 0.

        Args:
            draws: float32 [B, D], of the standard exponential distribution, for each of D channels.

        Raises:
            ConfigError: see `class_activation`.
        """
        features, weight = self._evidence(images, labels)
        features = features.clamp(min=0)
        root = (features.mean((2, 3)) * weight.clamp(min=0)).sqrt()
        channel = (root / draws.clamp(min=torch.finfo(root.dtype).tiny)).argmax(
            1
        )  # the first of exponential clocks
        return features.gather(1, channel[:, None, None, None].expand(-1, 1, *features.shape[2:]))[:, 0]

    def _evidence(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The last feature map, float32 [B, D, h, w], and the classifier's rows of the classes, float32 [B, ..., D]."""
        backbone: Any = self.backbone
        features = backbone.forward_features(self.normalised(images))
        weight = getattr(self.head, "weight", None)
        if weight is None or features.ndim != 4 or weight.shape[1] != features.shape[1]:
            raise ConfigError(
                f"class activation maps need a last feature map and one linear layer, but {type(backbone).__name__} "
                "does not end in them; use mixup or cutmix"
            )
        return features.float(), weight[labels].float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block without gradients and with the model in evaluation mode; restore its modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def freeze_batchnorm(model: Module) -> Module:
    """Put batch norms into evaluation mode: pretrained statistics are used and not updated.

    Call it after `model.train()`. The affine weights go on learning.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def head_of(backbone: Any) -> nn.Module:
    """The classifier; distilled networks have two, side by side."""
    head = backbone.get_classifier()
    return head if isinstance(head, nn.Module) else nn.ModuleList(head)
