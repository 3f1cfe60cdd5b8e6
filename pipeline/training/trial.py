"""Passes and steps that are tried before a training, and leave its model as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.models.classifier import Classifier


@contextmanager
def undone(model: Classifier, device: torch.device) -> Iterator[None]:
    """Restore weights, statistics, modes and what is frozen; free the memory that the block has used."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [(module, module.training) for module in model.modules()]
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.load_state_dict(tensors)
        for module, mode in modes:
            module.training = mode
        for parameter, learns in learning:
            parameter.requires_grad_(learns)
        empty_cache(device)


def empty_cache(device: torch.device) -> None:
    """Give back what no tensor uses: in pieces of the sizes of trials, other sizes would not fit into it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reset_peak(device)


def reset_peak(device: torch.device) -> None:
    """Measure the peak of a GPU's memory from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
