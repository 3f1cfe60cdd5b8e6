"""The number format of products: float32, bfloat16 or float16."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(setting: Literal["auto", "fastest"] | Precision, device: torch.device) -> Precision:
    """The precision that `train.precision` sets; for auto, the one that the processor has units for.

    For fastest as for auto: only a training tries (`pipeline.training.precision_trial`).

    bf16 on CPUs that compute in it and on GPUs of compute capability 8.0 or more (A100, A10, H100); fp16, with a scaled
    loss, on those of 7.x, whose tensor cores have no bf16 (V100, T4); fp32 elsewhere. Either halves the memory of a
    step. Its speed over fp32 depends on the processor: `make bench`.
    """
    setting = "auto" if setting == "fastest" else setting
    if setting != "auto":
        return setting
    half: tuple[Precision, ...] = ("bf16", "fp16")
    return next((precision for precision in half if has_units(precision, device)), "fp32")


def has_units(precision: Precision, device: torch.device) -> bool:
    """Whether a processor has units for products in a number format; without, it is slow in it."""
    if precision == "fp32":
        return True
    if device.type != "cuda":
        return precision == "bf16" and cpu_has_bf16()
    generation, _ = torch.cuda.get_device_capability(device)
    return generation >= (8 if precision == "bf16" else 7)


def cpu_has_bf16() -> bool:
    """Whether this processor has instructions for bfloat16 products: AVX-512 BF16 or AMX."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Autocast to a precision; inert for fp32."""
    context: AbstractContextManager[None] = torch.autocast(
        device.type, DTYPES[precision], enabled=precision != "fp32"
    )
    return context


class _Float32:
    """Mixed into the class of a layer: it computes in the type of its weights, float32, under autocast too."""

    weight: Tensor

    def forward(self, features: Tensor) -> Tensor:
        if features.device.type == "meta":  # autocast does not know this device
            return super().forward(features)  # type: ignore[misc, no-any-return]
        with autocast(features.device, "fp32"):
            return super().forward(features.to(self.weight.dtype))  # type: ignore[misc, no-any-return]


def compute_in_float32(head: nn.Module) -> None:
    """Have the linear layers and convolutions of a head compute in float32 under autocast too, in place.

    A logit of bfloat16 has 8 significant bits: two classes of 200 often tie, and the lower label would win.
    Names and tensors of the layers stay as they are.
    """
    for layer in head.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not isinstance(layer, _Float32):
            kind: Any = type(layer)
            layer.__class__ = type(kind.__name__, (_Float32, kind), {})


class _LearnsInFloat32:
    """Mixed into the class of a convolution: in training it computes in float32 and gives the type that it was given."""

    training: bool

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)  # type: ignore[misc, no-any-return]
        with autocast(features.device, "fp32"):
            return super().forward(features.float()).to(features.dtype)  # type: ignore[misc, no-any-return]


def train_depthwise_in_float32(model: nn.Module) -> None:
    """Have depthwise convolutions with a stride, or a window above 3 x 3, learn in float32 under autocast too: for CPUs.

    The backward pass that oneDNN has for them in bfloat16 is about 8 times as slow: four such layers took a third of
    the step of MobileNetV2, and eleven half of that of EfficientNet-Lite0. Names and tensors of the layers stay as they
    are, and so does evaluation, to the bit.
    """
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d) or not 1 < layer.groups == layer.in_channels:
            continue
        if max(layer.stride) > 1 or max(layer.kernel_size) > 3:
            kind: Any = type(layer)
            layer.__class__ = type(kind.__name__, (_LearnsInFloat32, kind), {})
