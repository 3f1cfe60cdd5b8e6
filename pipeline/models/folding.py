"""Batch norms of a model that only predicts, folded into the convolutions before them."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.common import seeding
from pipeline.models.classifier import Classifier, evaluating

TOLERANCE = 1e-5  # of the largest logit


def fold_batchnorms(model: Classifier, image_px: int) -> Classifier:
    """A copy of a model in evaluation mode, for predicting alone, without the batch norms that follow a convolution.

    In evaluation a batch norm is a scale and a shift of each channel: both go into the weights and the bias of the
    convolution (Jacob et al. 2018, arXiv:1712.05877, section 3.2). An activation that is part of the norm stays. Which
    norm follows which convolution is seen in a pass over a drawn image, and so is whether the logits stay within
    `TOLERANCE`: where they do not, the model itself is returned, as it was.

    Args:
        model: on the CPU.
        image_px: a size that the network takes.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    drawn = seeding.generator("folding").integers(0, 256, (1, 3, image_px, image_px), np.uint8)
    images, folded = torch.from_numpy(drawn), copy.deepcopy(model)
    with evaluating(folded):
        followed, logits = _followed_convolutions(folded, images)
        for name, convolution in followed.items():
            norm: Any = folded.get_submodule(name)
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight, convolution.bias, *statistics
            )
            folded.set_submodule(name, nn.Sequential(*norm.children()))
        error = (folded(images) - logits).abs().max()
    return folded.eval() if error <= TOLERANCE * logits.abs().max() else model


def _followed_convolutions(model: Classifier, images: Tensor) -> tuple[dict[str, nn.Conv2d], Tensor]:
    """By the name of a batch norm, the convolution whose output is its input, where both ran once; and the logits."""
    norms = {module: name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    inputs: list[tuple[nn.BatchNorm2d, Tensor]] = []

    def after(module: nn.Conv2d, _: tuple[Tensor], output: Tensor) -> None:
        outputs.append((module, output))

    def before(module: nn.BatchNorm2d, arguments: tuple[Tensor]) -> None:
        inputs.append((module, arguments[0]))

    handles = [norm.register_forward_pre_hook(before) for norm in norms]
    handles += [m.register_forward_hook(after) for m in model.modules() if isinstance(m, nn.Conv2d)]
    logits = model(images)
    for handle in handles:
        handle.remove()
    made_by = {id(output): convolution for convolution, output in outputs}  # `outputs` keeps them: ids differ
    ran = [module for module, _ in (*outputs, *inputs)]
    followed = {norm: made_by[id(taken)] for norm, taken in inputs if id(taken) in made_by}
    once = {
        norms[norm]: convolution
        for norm, convolution in followed.items()
        if ran.count(norm) == ran.count(convolution) == 1 and norm.running_mean is not None
    }
    return once, logits
