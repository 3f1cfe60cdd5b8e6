"""The form in which a model only predicts, several times as fast as the one in which it learns."""

import torch

from pipeline.config.schema import Config
from pipeline.models.classifier import Classifier
from pipeline.models.folding import fold_batchnorms
from pipeline.models.fusing import FusedClassifier, fuse_convolutions
from pipeline.models.precision import Precision


def predicting_form(
    model: Classifier, config: Config, precision: Precision, device: torch.device
) -> tuple[Classifier, FusedClassifier | None]:
    """A model on its device with batch norms folded into convolutions, and on a CPU its fused form, where it has one.

    Args:
        model: in evaluation mode, on the CPU.
    """
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    placed = fold_batchnorms(model, config.data.image_px).to(memory_format=layout).to(device)
    on_cpu = device.type == "cpu"
    return placed, fuse_convolutions(placed, config.data.image_px, precision) if on_cpu else None
