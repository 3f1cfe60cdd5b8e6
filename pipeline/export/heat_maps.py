"""Where a picture speaks for the most likely classes: class activation maps (Zhou et al. 2016, arXiv:1512.04150).

They need no gradients, so that a graph can give them: the last feature map, weighted by the classifier's row of a class.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.classifier import Classifier

MOST_CLASSES = 5
EXACT = 1e-4
"""largest difference of a logit and what its map says of it, relative to the largest logit"""


def are_logits(model: Classifier, image_px: int) -> bool:
    """Whether the mean of a class's map, and the bias of the class, are the logit of the backbone's head.

    It is so where the head is a mean over all positions and one linear layer, and nothing stands between them: a map
    then says what each position adds. Vision transformers have no feature map, ConvNeXt has a norm behind the mean.
    """
    backbone: Any = model.backbone
    head = model.head
    if not isinstance(head, nn.Linear):
        return False
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, image_px, image_px), generator=noise, dtype=torch.uint8)
    with torch.no_grad():
        features = backbone.forward_features(model.normalised(images))
        if features.ndim != 4 or features.shape[1] != head.in_features:
            return False
        logits = backbone.forward_head(features)
        said = head(features.mean((2, 3)))
    return bool((said - logits).abs().max() <= EXACT * logits.abs().max())


@contextmanager
def last_feature_maps(model: Classifier) -> Iterator[list[Tensor]]:
    """Collect the last feature map in each forward pass, float32 [B, D, h, w]: what the backbone's own head takes."""
    backbone: Any = model.backbone
    kept: list[Tensor] = []

    def keeping(forward: Any) -> Any:
        def forward_and_keep(*arguments: Any, **options: Any) -> Any:
            found = forward(*arguments, **options)
            kept.append(found[0] if isinstance(found, tuple) else found)
            return found

        return forward_and_keep

    name = "forward_features" if model.mid_head is None else "forward_intermediates"
    setattr(backbone, name, keeping(getattr(backbone, name)))
    try:
        yield kept
    finally:
        delattr(backbone, name)


def maps(model: Classifier, features: Tensor, labels: Tensor) -> Tensor:
    """[B, D, h, w], int64 [B, K] -> how much each position adds to the logit of a class, [B, K, h, w]."""
    weight: Any = model.head.weight
    added: Tensor = weight[labels] @ features.flatten(2)
    return added.reshape(*labels.shape, *features.shape[2:])
