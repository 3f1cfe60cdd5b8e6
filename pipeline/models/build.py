"""A backbone, of timm or our own, with its weights and a head for C classes, behind one forward for uint8 images."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.common import console, files
from pipeline.common.errors import ConfigError, WeightsError
from pipeline.config import messages
from pipeline.config.model import ModelConfig
from pipeline.models import resnet, weights
from pipeline.models.heads import GeM, MidLevelHead, mid_level_head, pool_by_gem

Module = TypeVar("Module", bound=nn.Module)
ABSENT_NAMED = 5


class Classifier(nn.Module):
    """Normalises inside, so that nothing float is copied and an exported model cannot be fed wrongly."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        mid_head: MidLevelHead | None = None,
        *,
        grey: bool = False,
    ) -> None:
        """mean, std: of the RGB values, range 0..1. grey: the backbone takes one channel, the mean of the three."""
        super().__init__()
        self.backbone = backbone
        self.grey = grey
        self.mid_head = mid_head
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images uint8 [B, 3, H, W] -> logits, float32 (bfloat16 or float16 under autocast).

        In evaluation [B, C], the mean over the heads; in training [heads, B, C], each with a loss of its own.
        """
        logits = self._heads(self.normalised(images))
        return logits if self.training else logits.mean(0)

    def normalised(self, images: Tensor) -> Tensor:
        """What the backbone takes: uint8 [B, 3, H, W] -> float32 [B, 3, H, W], or [B, 1, H, W] where it is grey."""
        normalised: Tensor = (images - self.mean) / self.std
        return normalised.mean(1, keepdim=True) if self.grey else normalised

    def _heads(self, images: Tensor) -> Tensor:
        backbone: Any = self.backbone
        if self.mid_head is None:
            return torch.stack([backbone(images)])  # a copy: shards do not bear views
        last, (mid, _) = backbone.forward_intermediates(images, indices=2)
        return torch.stack([backbone.forward_head(last), self.mid_head(mid)])

    @property
    def head(self) -> nn.Module:
        """The last layer of the backbone."""
        return _head(self.backbone)

    @property
    def new_layers(self) -> list[nn.Module]:
        """What is new for these classes: the heads, and a pooling that learns."""
        pools = [module for module in self.backbone.modules() if isinstance(module, GeM)]
        return [self.head, *pools, *([self.mid_head] if self.mid_head else [])]

    def class_activation(self, images: Tensor, labels: Tensor) -> Tensor:
        """How much each place of an image speaks for a class: [B, 3, H, W], int64 [B] -> float32 [B, h, w].

        Class activation maps (Zhou et al. 2016, arXiv:1512.04150): the last feature map, weighted by the
        classifier's row of the class.

        Raises:
            ConfigError: the backbone does not end in a feature map, pooled, and one linear layer.
        """
        backbone: Any = self.backbone
        features = backbone.forward_features(self.normalised(images))
        weight = getattr(self.head, "weight", None)
        if weight is None or features.ndim != 4 or weight.shape[1] != features.shape[1]:
            raise ConfigError(
                f"class activation maps need a last feature map and one linear layer, and {type(backbone).__name__} "
                "has no such end; take mixup or cutmix instead of snapmix"
            )
        return torch.einsum("bdhw,bd->bhw", features.float(), weight[labels].float())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients and in evaluation mode, in which nothing of the model changes; then as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def build(config: ModelConfig, classes: int) -> tuple[Classifier, dict[str, Any]]:
    """A model for `classes` classes, and what is known of its weights: source, sha256, share loaded.

    Raises:
        ConfigError: there is no such model, or it does not take one of `model.options`.
        WeightsError: weights are missing, cannot be downloaded, or fit too little of the model.
    """
    from_hub = config.pretrained and config.weights is None
    if config.name.startswith(resnet.PREFIX):
        backbone = _own(config, classes)
    else:
        backbone = _create(config, classes, pretrained=from_hub)  # timm is strict: all but the head
    origin: dict[str, Any] = {"source": "random", "tensors": 0, "share": 0.0}
    if from_hub:
        origin = {"source": _hub(backbone.pretrained_cfg), "tensors": len(_body(backbone)), "share": 1.0}
    elif config.weights is not None:
        origin = _load(backbone, config.weights)
    usual, channels = backbone.pretrained_cfg, getattr(backbone, "in_chans", 3)
    if channels not in (1, 3):
        raise ConfigError(
            f"model.options: images have 3 channels, or 1 when they become grey, and not {channels}"
        )
    if config.pool == "gem":
        pool_by_gem(backbone)
    mid_head = mid_level_head(backbone, classes) if config.mid_level_head else None
    mean, std = config.mean or usual["mean"], config.std or usual["std"]
    return Classifier(backbone, mean, std, mid_head, grey=channels == 1), origin


def without_weights(config: ModelConfig) -> ModelConfig:
    """The same model from random weights: for a checkpoint that brings its own."""
    return config.model_copy(update={"pretrained": False, "weights": None})


def freeze_batchnorm(model: Module) -> Module:
    """Put batch norms into evaluation mode: pretrained statistics are used and not updated.

    Call it after `model.train()`. The affine weights go on learning.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def _own(config: ModelConfig, classes: int) -> resnet.ResNet:
    """A network of `pipeline.models.resnet`; the weights of timm's network of the same name fit it."""
    published = resnet.DESIGNS.get(config.name)
    if published is None:
        raise ConfigError(f"model.name: there is no {config.name!r}; there are {', '.join(resnet.DESIGNS)}")
    try:
        design = resnet.Design.model_validate({**published.model_dump(), **config.options})
    except ValidationError as error:
        found = [messages.sentence(one, config.options, resnet.Design) for one in error.errors()]
        raise ConfigError(f"model.options of {config.name}: {'; '.join(dict.fromkeys(found))}") from error
    made = resnet.ResNet(
        design,
        classes,
        dropout=config.dropout,
        stochastic_depth=config.stochastic_depth,
        pool=config.pool if config.pool in ("max", "avgmax") else "avg",
    )
    if config.pretrained and config.weights is None:
        if design.model_copy(update={"zero_init": None}) != published or config.name not in resnet.WEIGHTS:
            raise WeightsError(
                f"{config.name}: no weights are published for this network with these model.options; "
                "set model.pretrained=false, or give a file as model.weights=PATH"
            )
        twin = config.model_copy(update={"name": resnet.WEIGHTS[config.name], "options": {}})
        theirs = _create(twin, classes, pretrained=True)
        made.load_state_dict(theirs.state_dict())
        made.pretrained_cfg = theirs.pretrained_cfg
    return made


def _create(config: ModelConfig, classes: int, *, pretrained: bool) -> Any:
    try:
        options = _options(config)
        return timm.create_model(config.name, pretrained, num_classes=classes, **options)
    except TypeError as error:
        raise ConfigError(f"model.options: {config.name} does not take {options} ({error})") from error
    except OSError as error:  # the hub clients' network errors are OSErrors
        raise WeightsError(
            f"{config.name}: its weights cannot be downloaded ({type(error).__name__}); where there is a "
            f"network, torch.save timm.create_model({config.name!r}, pretrained=True).state_dict(), "
            "bring the file and give model.weights=PATH; or start from random weights: model.pretrained=false"
        ) from error
    except RuntimeError as error:
        if "Unknown model" in str(error):
            near = difflib.get_close_matches(config.name, timm.list_models(), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has all names"
            raise ConfigError(f"model.name: timm has no model {config.name!r}; {hint}") from error
        if "Invalid pretrained tag" in str(error) or "No pretrained weights" in str(error):
            tags = ", ".join(timm.list_pretrained(f"{config.name.partition('.')[0]}.*")) or "none"
            raise ConfigError(
                f"model.name: no weights are published as {config.name!r}; there are: {tags}"
            ) from error
        raise


def _options(config: ModelConfig) -> dict[str, Any]:
    """The arguments of timm.create_model; what is at its default is left out, for models that do not take it."""
    named = {
        "drop_rate": config.dropout,
        "drop_path_rate": config.stochastic_depth,
        "global_pool": None if config.pool == "gem" else config.pool,
    }
    return {**{name: value for name, value in named.items() if value}, **config.options}


def _hub(pretrained_cfg: Mapping[str, Any]) -> str:
    return str(pretrained_cfg.get("hf_hub_id") or pretrained_cfg.get("url"))


def _head(backbone: Any) -> nn.Module:
    """The classifier; distilled networks have two, side by side."""
    head = backbone.get_classifier()
    return head if isinstance(head, nn.Module) else nn.ModuleList(head)


def _body(backbone: Any) -> dict[str, Tensor]:
    """Parameters and running statistics without the head's; batch norm's step counter is no weight."""
    head = {tensor.data_ptr() for tensor in _head(backbone).state_dict().values()}
    return {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if tensor.is_floating_point() and tensor.data_ptr() not in head
    }


def _load(backbone: Any, path: Path) -> dict[str, Any]:
    """Load what fits by name and shape; few tensors loaded is an error."""
    state, body = weights.read(path), _body(backbone)
    fitting = {
        name: state[name] for name, own in body.items() if name in state and state[name].shape == own.shape
    }
    share = len(fitting) / len(body)
    if share < 1:
        absent = ", ".join([name for name in body if name not in fitting][:ABSENT_NAMED])
        found = f"{path}: fits {len(fitting)} of the model's {len(body)} tensors by name and shape (not: {absent} ...)"
        if share < weights.LEAST_SHARE:
            raise WeightsError(f"{found}; bring the weights of this very model or set model.pretrained=false")
        console.warn(f"{found}; the others start from random values")
    backbone.load_state_dict(fitting, strict=False)
    digest = files.digest_of_file(path)
    return {"source": str(path), "sha256": digest, "tensors": len(fitting), "share": share}
