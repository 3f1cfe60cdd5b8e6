"""Frozen stages (the first ones, until an epoch), and frozen statistics of batch norm."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.common.errors import ConfigError
from pipeline.config.schema import Config
from pipeline.models.classifier import Classifier, freeze_batchnorm
from pipeline.models.frozen_norms import merge_frozen_norms
from pipeline.models.option_errors import option_errors, where_size_matters
from pipeline.models.precision import Precision, train_depthwise_in_float32
from pipeline.training.optimizer import stages


class FreezeSchedule:
    """What a configuration freezes in a model, epoch by epoch."""

    def __init__(self, config: Config, model: Classifier) -> None:
        """Find the model's stages, where some of them are to be frozen.

        Raises:
            ConfigError: the backbone has fewer stages, or timm does not say what its stages are.
        """
        self.config, self.model = config, model
        frozen = config.optim.frozen_stages
        self.stages: list[list[nn.Module]] = stages(model) if frozen else []
        if frozen and frozen >= len(self.stages):
            raise ConfigError(
                f"optim.frozen_stages: {frozen} of the {len(self.stages)} stages of {config.model.name}, the last "
                "of which is the head; take fewer"
            )

    def apply(self, epoch: int) -> int:
        """Set training mode for an epoch (from 0), except for its frozen stages; return their number."""
        thaw = self.config.optim.unfreeze_epoch
        frozen = 0 if thaw is not None and epoch >= thaw else self.config.optim.frozen_stages
        self.model.train()
        if self.config.model.freeze_batchnorm:
            freeze_batchnorm(self.model)
        for number, modules in enumerate(self.stages):
            for module in modules:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(number >= frozen)
                if number < frozen and isinstance(module, _BatchNorm):
                    module.eval()  # itself alone: the owner of a class token is the whole backbone
        return frozen


def learn_fast(config: Config, model: Classifier, precision: Precision) -> None:
    """Have a model that is on its device compute its training passes faster; evaluation stays as it is, to the bit.

    Batch norms are computed on weights while they are frozen, and on a CPU in bfloat16 some depthwise convolutions
    in float32.

    Raises:
        ConfigError: the network does not take images of this size.
    """
    freezes = config.model.freeze_batchnorm or config.optim.frozen_stages > 0
    # A convolution and its norm may be in two shards, of which one is gathered.
    if freezes and config.distributed.shard == "none":
        with option_errors(*where_size_matters(config, model.backbone, config.data.image_px)):
            merge_frozen_norms(model, config.data.image_px)
    if model.mean.device.type == "cpu" and precision == "bf16":
        train_depthwise_in_float32(model)
