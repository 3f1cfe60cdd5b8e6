"""Batch norms of a model that only predicts, folded into the convolutions before them."""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.common import seeding
from pipeline.models.classifier import Classifier, evaluating
from pipeline.models.frozen_norms import convolutions_with_norms

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
    folded = copy.deepcopy(model)
    names = {module: name for name, module in folded.named_modules()}
    pairs = convolutions_with_norms(folded, image_px)
    if not pairs:
        return model
    drawn = seeding.generator("folding").integers(0, 256, (1, 3, image_px, image_px), np.uint8)
    images = torch.from_numpy(drawn)
    with evaluating(folded):
        logits = folded(images)
        for convolution, norm in pairs:
            statistics: Any = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight, convolution.bias, *statistics
            )
            folded.set_submodule(names[norm], nn.Sequential(*norm.children()))
        error = (folded(images) - logits).abs().max()
    return folded.eval() if error <= TOLERANCE * logits.abs().max() else model
