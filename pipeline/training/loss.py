"""The loss of a training step: cross-entropy with label smoothing, over one or several heads, with mixed labels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.training.mixing import MixedBatch


def cross_entropy_sum(logits: Tensor, batch: MixedBatch, label_smoothing: float) -> Tensor:
    """Sum over images and heads of the cross-entropies, each label's weighted: float32 scalar, nats.

    Args:
        logits: float32 [heads, B, C].
        label_smoothing: 0..1 (Szegedy et al. 2016, arXiv:1512.00567).
    """
    total = logits.new_zeros(())
    for head in logits:
        loss = F.cross_entropy(head, batch.label, reduction="none", label_smoothing=label_smoothing)
        total = total + (batch.weight * loss).sum()
        if batch.other_label is not batch.label:
            other = F.cross_entropy(
                head, batch.other_label, reduction="none", label_smoothing=label_smoothing
            )
            total = total + (batch.other_weight * other).sum()
    return total


def count_correct(logits: Tensor, batch: MixedBatch) -> Tensor:
    """How many images are predicted as the heavier of their labels, by the mean over heads; int64 scalar.

    Args:
        logits: [heads, B, C].
    """
    heavier = torch.where(batch.weight >= batch.other_weight, batch.label, batch.other_label)
    return (logits.mean(0).argmax(1) == heavier).sum()
