"""How the gradients of a step are spread: a histogram a weight, for whoever looks for the layer that explodes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

BINS = 64


def histograms(model: nn.Module) -> Mapping[str, Any]:
    """A histogram of the gradient of each weight (of two dimensions and more: no biases, no norms).

    Returns:
        name -> {"counts": 64 integers, "edges": 65 rising floats}. A weight without a gradient, or with one that
        is not finite, is left out.
    """
    gradients = {
        name: weight.grad.detach().float()
        for name, weight in model.named_parameters()
        if weight.ndim > 1 and weight.grad is not None
    }
    return {name: _histogram(grad) for name, grad in gradients.items() if bool(grad.isfinite().all())}


def _histogram(values: Tensor) -> dict[str, list[Any]]:
    low, high = float(values.min()), float(values.max())
    if low == high:  # all alike: one bin of any width holds them
        low, high = low - 0.5, high + 0.5
    # What `torch.histc` counts, bit for bit; on GPUs that one has no deterministic algorithm.
    bins = ((values.flatten() - low) * BINS / (high - low)).long().clamp(0, BINS - 1)
    counts = torch.bincount(bins, minlength=BINS)
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    return {"counts": counts.tolist(), "edges": edges.tolist()}
