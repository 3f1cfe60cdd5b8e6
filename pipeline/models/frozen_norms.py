"""Batch norms with frozen statistics, computed in training on the weights of the convolutions before them.

With fixed statistics a batch norm after a convolution is a scale and a shift of each channel,

    norm(conv(x, w)) = conv(x, s * w) + t,    s = gamma / sqrt(variance + eps),    t = beta - s * mean,

so that no pass over the feature map is needed, forward or backward, and the convolution's output need not be kept for
one. Autograd goes through s and t: w, gamma and beta have their exact gradients. Parameters, buffers and their names
stay as they are. Jacob et al. 2018, arXiv:1712.05877, section 3.2, fold in this way in training.
"""

from collections import Counter
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.common import hardware
from pipeline.models.classifier import Classifier, evaluating

# Only what is known to compute a convolution, and a norm with at most timm's activation behind it, and nothing more.
CONVOLUTIONS: tuple[type, ...] = nn.Conv2d, Conv2dSame
NORMS: tuple[type, ...] = nn.BatchNorm2d, BatchNormAct2d


class _WithNorm:
    """Mixed into the class of a convolution: while it trains and its norm is frozen, it computes both."""

    pair: "tuple[Any, Any]"

    def forward(self, features: Tensor) -> Tensor:
        convolution, norm = self.pair
        if not _merges(convolution, norm):
            return super().forward(features)  # type: ignore[misc, no-any-return]
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if convolution.bias is not None:
            shift = shift + convolution.bias * scale
        weight = convolution.weight * scale.view(-1, 1, 1, 1)
        if isinstance(convolution, Conv2dSame):
            window, stride = list(convolution.kernel_size), list(convolution.stride)
            features = pad_same(features, window, stride, list(convolution.dilation))
        output: Tensor = convolution._conv_forward(features, weight, shift)
        return output


class _WithoutScale:
    """Mixed into the class of a batch norm: what is left of it where its convolution has computed the norm."""

    pair: "tuple[Any, Any]"

    def forward(self, features: Tensor) -> Tensor:
        convolution, norm = self.pair
        if not _merges(convolution, norm):
            return super().forward(features)  # type: ignore[misc, no-any-return]
        output: Tensor = norm.act(norm.drop(features)) if isinstance(norm, BatchNormAct2d) else features
        return output


def _merges(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether a pair computes its norm on the weights: its network trains, and the norm's statistics are frozen."""
    return convolution.training and not norm.training


def merge_frozen_norms(model: Classifier, image_px: int) -> int:
    """Have each convolution compute the norm behind it while that is frozen in training; the number of such pairs.

    In evaluation, and where a norm is not frozen (yet, or any more), both compute what they always did, to the bit.
    A pair that is not certain stays as it is: either of them used twice, or in another way, or with hooks.

    Args:
        image_px: a size that the network takes.
    """
    pairs = convolutions_with_norms(model, image_px)
    for pair in pairs:
        for module, mixin in zip(pair, (_WithNorm, _WithoutScale), strict=True):
            kind: Any = type(module)
            module.__class__ = type(kind.__name__, (mixin, kind), {})
            module.pair = pair  # type: ignore[assignment]  # a tuple: neither is a module inside the other
    return len(pairs)


def convolutions_with_norms(model: Classifier, image_px: int) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolutions whose output goes into a batch norm with statistics and weights, and nowhere else.

    They are seen in a pass of one black image.
    """
    trace = _Trace()
    handles = [
        module.register_forward_hook(trace.remember) for module in model.modules() if _is_plain(module)
    ]
    images = torch.zeros((1, 3, image_px, image_px), dtype=torch.uint8, device=model.mean.device)
    try:
        with evaluating(model), hardware.repeatable_convolutions(), trace:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return trace.pairs()


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a convolution or a norm of the known types, without hooks."""
    hooks = (
        *(module._forward_hooks, module._forward_pre_hooks),
        *(module._backward_hooks, module._backward_pre_hooks),
    )
    if any(hooks):
        return False
    if isinstance(module, nn.BatchNorm2d):
        return type(module) in NORMS and module.affine and module.track_running_stats
    return type(module) in CONVOLUTIONS and module.padding_mode == "zeros"


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no type for it
    """What a pass shows: the calls of modules, and how many operations took the output of each."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []  # it keeps the tensors, so that ids differ
        self.uses: Counter[int] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        leaves = pytree.tree_leaves((arguments, named))
        self.uses.update(id(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        return function(*arguments, **(named or {}))

    def remember(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        """A hook behind a module's forward."""
        self.calls.append((module, arguments[0], output))
        if isinstance(module, nn.Conv2d):
            self.uses[id(output)] = 0  # an earlier tensor may have had this id

    def pairs(self) -> list[tuple[Any, Any]]:
        """A convolution and the norm behind it, each called once, with nothing else that takes what is between them."""
        times = Counter(module for module, _, _ in self.calls)
        made_by = {
            id(output): module
            for module, _, output in self.calls
            if isinstance(module, nn.Conv2d) and times[module] == 1 and self.uses[id(output)] == 1
        }
        return [
            (made_by[id(taken)], module)
            for module, taken, _ in self.calls
            if isinstance(module, nn.BatchNorm2d) and times[module] == 1 and id(taken) in made_by
        ]
