"""`model`: the network and where its weights come from."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.types import Fraction, Options, Positive, Section, UserPath


class ModelConfig(Section):
    name: str = "resnet50.tv_in1k"
    """timm model (.tv_in1k: torchvision's ImageNet-1k V1 weights), or plumage/resnet18..152, plumage/resnet_small"""
    pretrained: bool = True
    """ImageNet weights at the start: timm's from its hub, or those of model.weights; false: random weights"""
    weights: UserPath | None = None
    """file with a state dict of timm or torchvision (.pth, .pt, .safetensors), or `package`; null: timm's hub"""
    options: Options = Field(default={})
    """extra arguments of timm.create_model, or of a plumage/ network: residual, shortcut, stem, width, blocks, ..."""
    dropout: Fraction = 0.0
    """dropout probability before the classifier (timm's drop_rate)"""
    stochastic_depth: Fraction = 0.0
    """drop path: share of images that skip the last residual block in training, linearly down to 0 at the first"""
    pool: Literal["avg", "max", "avgmax", "gem"] | None = None
    """pooling of the last feature map; gem: generalised mean; null: timm's for this model"""
    mid_level_head: bool = False
    """add a classifier on the second-to-last stage (conv4_x); the logits of both are averaged"""
    mean: tuple[float, float, float] | None = None
    """mean of the RGB values, range 0..1, for normalisation; null: timm's for this model"""
    std: tuple[Positive, Positive, Positive] | None = None
    """standard deviation of the RGB values, range 0..1, for normalisation; null: timm's for this model"""
    freeze_batchnorm: bool = False
    """keep the pretrained running statistics: batch norm stays in evaluation mode"""

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.weights is not None and not self.pretrained:
            raise ValueError("weights are given although pretrained is false; drop one of the two")
        return self
