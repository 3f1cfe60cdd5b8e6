"""The loops that scripts of plain PyTorch have: an epoch of training, and predictions."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from recorder import Predicted


def predict(network: Any, batches: Iterable[Any], layout: Any = torch.contiguous_format) -> Predicted:
    """True and predicted labels of batches (images, labels), in eval mode."""
    truth: list[int] = []
    predicted: list[int] = []
    network.eval()
    with torch.inference_mode():
        for images, labels in batches:
            predicted += network(images.contiguous(memory_format=layout)).argmax(1).tolist()
            truth += labels.tolist()
    return truth, predicted


def train_epoch(
    network: Any,
    batches: Iterable[Any],
    loss: Any,
    optimizer: Any,
    layout: Any = torch.contiguous_format,
    autocast: AbstractContextManager[Any] | None = None,
) -> None:
    """One pass over batches (images, labels), a step each."""
    network.train()
    for images, labels in batches:
        optimizer.zero_grad()
        with autocast or nullcontext():
            value = loss(network(images.contiguous(memory_format=layout)), labels)
        value.backward()
        optimizer.step()
