"""In which number format products are taken: float32, bfloat16 or float16."""

import functools
import time
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch.nn import functional as F

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDS = 5
CLEARLY_FASTER = 1.2  # far from both answers that processors give, so that noise does not decide


def resolve(wanted: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """`wanted`, or for auto: bf16 on a GPU that has it, and on a CPU where it is faster; else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if bf16_is_faster_on_this_cpu() else "fp32"


@functools.cache
def bf16_is_faster_on_this_cpu() -> bool:
    """Whether a convolution of ResNet-50 is faster in bfloat16, tried out in a fraction of a second.

    The processor's flags do not tell: bfloat16 has four times the throughput of float32 with AMX,
    twice on some cores with AVX-512 BF16, and half of it on others, or none where it is emulated.
    """
    image, weight = torch.ones(4, 128, 56, 56), torch.ones(128, 128, 3, 3)
    sides = {
        dtype: [tensor.to(dtype, memory_format=torch.channels_last) for tensor in (image, weight)]
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds: dict[torch.dtype, float] = {}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for dtype, (x, w) in sides.items():
                start = time.perf_counter()
                F.conv2d(x, w, padding=1)
                took = time.perf_counter() - start
                seconds[dtype] = min(took, seconds.get(dtype, took))
    return seconds[torch.float32] > CLEARLY_FASTER * seconds[torch.bfloat16]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Autocast to a precision; inert for fp32."""
    context: AbstractContextManager[None] = torch.autocast(
        device.type, DTYPES[precision], enabled=precision != "fp32"
    )
    return context
