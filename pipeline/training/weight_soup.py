"""The mean of several networks' weights (a model soup, Wortsman et al. 2022, arXiv:2203.05482), ready to predict."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.data.loader import Batch
from pipeline.distributed.sync_batchnorm import BatchNorm
from pipeline.models.classifier import Classifier
from pipeline.models.precision import Precision, autocast

Weights = Mapping[str, Tensor]


def average(ingredients: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of state dicts of one network, summed in float64; what is no floating-point number is the first one's."""
    first = ingredients[0]
    return {
        name: torch.stack([weights[name].double() for weights in ingredients]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }


def moved_batchnorms(model: nn.Module, ingredients: Sequence[Weights]) -> list[BatchNorm]:
    """The batch norms whose running statistics are not the same in all state dicts: frozen ones are."""
    first, *others = ingredients
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm)
        and any(
            not torch.equal(first[key], other[key])
            for key in (f"{name}.running_mean", f"{name}.running_var")
            if key in first
            for other in others
        )
    ]


@torch.no_grad()
def renew_batchnorms(
    model: Classifier,
    norms: Sequence[BatchNorm],
    batches: Iterable[Batch],
    precision: Precision,
    device: torch.device,
) -> None:
    """Give batch norms the mean statistics of batches under the weights that the model has now.

    The statistics of averaged weights are not the average of the statistics (SWA, Izmailov et al. 2018,
    arXiv:1803.05407). As `torch.optim.swa_utils.update_bn` does it, but for the chosen norms alone, and without dropout
    and stochastic depth, which are off when the model answers. The model is in evaluation mode afterwards.
    """
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    for batch in batches if norms else ():
        with autocast(device, precision):
            model(batch.to(device).image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
