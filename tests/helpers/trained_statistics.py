"""Networks with drawn weights whose batch norms are no identity, as after a training."""

import torch
from torch import nn

from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.models.classifier import Classifier


def drawn_network(config: ModelConfig, classes: int, image_px: int) -> Classifier:
    """A model in evaluation mode: statistics of drawn images, and drawn scales and shifts."""
    torch.manual_seed(0)
    model = build_model(config, classes)[0].train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        for _ in range(2):
            model(torch.randint(0, 256, (4, 3, image_px, image_px), dtype=torch.uint8))
    return model.eval()
