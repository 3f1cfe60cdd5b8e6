"""LP-FT, linear probing and then fine-tuning: the head begins as a linear head on the frozen features is.

While a random head learns, its gradients distort the pretrained features, and images unlike those of the training
suffer (Kumar et al. 2022, arXiv:2202.10054).
"""

from typing import Any

import numpy as np
from torch import nn

from pipeline.common import signals
from pipeline.common.errors import ConfigError, Stopped, WeightsError
from pipeline.distributed.data_parallel import shard_like
from pipeline.distributed.process_group import Ranks
from pipeline.inference.linear_head import DEFAULT_WEIGHT_DECAY, Images, fit_linear_head
from pipeline.models.classifier import Classifier


def start_head(
    models: list[Classifier],
    train: Images,
    val: Images,
    classes: int,
    ranks: Ranks,
    weight_decay: float | None = None,
) -> dict[str, Any]:
    """Give models of the same weights the head that `plumage probe` finds; return what was chosen for it.

    Each rank fits, so that none waits for another longer than a collective may take; the head of the first rank is
    everybody's. All ranks call it.

    Args:
        weight_decay: that of the head where there are no validation images to choose it; None: the default.

    Raises:
        ConfigError: the network does not end in one linear layer with a bias.
        WeightsError: features are not finite.
    """
    for model in models:
        check_head(model)
    broken = sum(int((~np.isfinite(images.features).all(axis=1)).sum()) for images in (train, val))
    if broken:
        raise WeightsError(
            f"train.start_from=probe: the features of the model are not finite for {broken:,} images; its weights "
            "have diverged: give others with model.weights"
        )
    without_val = DEFAULT_WEIGHT_DECAY if weight_decay is None else weight_decay
    chosen = fit_linear_head(train, val, classes, without_val)
    weight, bias = ranks.broadcast(chosen.model.of_plain_features())
    for model in models:
        name = next(name for name, layer in model.named_modules() if layer is model.head)
        tensors = model.state_dict()
        weight_name, bias_name = f"{name}.weight", f"{name}.bias"
        new = {
            weight_name: shard_like(weight.view(tensors[weight_name].shape), tensors[weight_name]),
            bias_name: shard_like(bias, tensors[bias_name]),
        }
        model.load_state_dict(new, strict=False)
    origin = {"source": "probe", "weight_decay": chosen.setting}
    return ranks.broadcast({**origin, "val_top1": chosen.val_top1, "val_loss": chosen.val_loss})


def check_head(model: Classifier) -> None:
    """Raise a `ConfigError` where a linear head on the features cannot be the end of the network."""
    head = model.head
    is_linear = isinstance(head, nn.Linear) or (isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1))
    if not is_linear or head.bias is None:
        raise ConfigError(
            "train.start_from=probe needs a network that ends in one linear layer with a bias, and "
            f"{type(model.backbone).__name__} does not; set train.start_from=random"
        )


def stop_if_asked(ranks: Ranks) -> None:
    """Raise `Stopped` where a signal came to any rank: before the first step there is nothing to save."""
    name = signals.requested()
    (stopping,) = ranks.any_rank(name is not None)
    if stopping:
        raise Stopped(
            f"stopped by {name or 'a signal on another rank'}, before the first step; the same command begins anew"
        )
