"""`model`: the network and where its weights come from."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.types import Fraction, Options, Positive, Section


class ModelConfig(Section):
    name: str = "resnet50.tv_in1k"
    """any model of timm (.tv_in1k: torchvision's ImageNet-1k V1 weights), or plumage/resnet18..152, resnet_small"""
    pretrained: bool = True
    """start from ImageNet weights: timm's from its hub, or the file in weights"""
    weights: Path | None = None
    """a state dict of timm or torchvision (.pth, .pt, .safetensors)"""
    options: Options = Field(default={})
    """further arguments of timm.create_model; of plumage/ networks: residual, shortcut, stem, width, blocks, ..."""
    dropout: Fraction = 0.0
    """before the classifier (timm's drop_rate)"""
    stochastic_depth: Fraction = 0.0
    """residual blocks left out in training, rising with depth to this share (timm's drop_path_rate)"""
    pool: Literal["avg", "max", "avgmax", "gem"] | None = None
    """pooling of the last feature map; gem: generalised mean; null: as timm has it for this model"""
    mid_level_head: bool = False
    """a second classifier on the last but one stage (conv4_x), whose logits are averaged with the first's"""
    mean: tuple[float, float, float] | None = None
    """of the RGB values, range 0..1; null: as timm has it for this model"""
    std: tuple[Positive, Positive, Positive] | None = None
    """of the RGB values, range 0..1; null: as timm has it for this model"""
    freeze_batchnorm: bool = False
    """keep the pretrained running statistics: batch norm stays in evaluation mode"""

    @model_validator(mode="after")
    def _agree(self) -> "ModelConfig":
        if self.weights is not None and not self.pretrained:
            raise ValueError("weights are given although pretrained is false; drop one of the two")
        return self
