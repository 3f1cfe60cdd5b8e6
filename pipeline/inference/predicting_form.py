"""The form in which a model only predicts, several times as fast as the one in which it learns."""

import torch

from pipeline.common import hardware
from pipeline.config.schema import Config
from pipeline.models.classifier import Classifier, evaluating
from pipeline.models.folding import fold_batchnorms
from pipeline.models.fusing import FusedClassifier, fuse_convolutions
from pipeline.models.option_errors import option_errors, where_size_matters
from pipeline.models.precision import Precision, autocast


def predicting_form(
    model: Classifier, config: Config, precision: Precision, device: torch.device
) -> tuple[Classifier, FusedClassifier | None]:
    """A model on its device with batch norms folded into convolutions, and on a CPU its fused form, where it has one.

    Args:
        model: in evaluation mode, on the CPU.

    Raises:
        ConfigError: the network does not take images of this size.
    """
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    side_px, fused = config.data.image_px, None
    with option_errors(*_where_size_fails(config, model)):
        placed = fold_batchnorms(model, side_px).to(memory_format=layout).to(device)
        if device.type == "cpu":
            fused = fuse_convolutions(placed, side_px, precision)
        if fused is None:  # else it has had a pass
            # As the passes that follow: timing cuDNN's algorithms for one image would be for nothing.
            with evaluating(placed), autocast(device, precision), hardware.repeatable_convolutions():
                placed(torch.zeros((1, 3, side_px, side_px), dtype=torch.uint8, device=device))
    return placed, fused


def _where_size_fails(config: Config, model: Classifier) -> tuple[str, str]:
    """The words of `option_errors`; of a configuration `at_evaluation` they name the key that gave the size."""
    side_px = config.data.image_px
    if config.eval.image_px != side_px:
        return where_size_matters(config, model.backbone, side_px)
    return (
        f"model.name={config.model.name}: cannot compute images of eval.image_px={side_px}",
        "drop eval.image_px, to predict at the size the model was trained with",
    )
