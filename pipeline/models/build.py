"""A model by its name: a backbone, timm's or ours, with its weights and a head for C classes."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from pydantic import ValidationError
from timm.models._builder import build_model_with_cfg

from pipeline.common import console
from pipeline.common.errors import ConfigError, WeightsError
from pipeline.config import messages
from pipeline.config.model import ModelConfig
from pipeline.models import packaged_weights, resnet
from pipeline.models.classifier import Classifier, head_of
from pipeline.models.heads import mid_level_head, pool_by_gem
from pipeline.models.licences import licence_of
from pipeline.models.option_errors import option_errors
from pipeline.models.pretrained import backbone_tensors, load_pretrained

# What timm's factory takes beside a network's own arguments: files, places of weights, other outputs than logits.
OF_FACTORY = {
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
    *("features_only", "out_indices", "feature_cls", "pruned", "num_classes", "device", "dtype"),
} - {"kwargs"}


def build_model(config: ModelConfig, classes: int) -> tuple[Classifier, dict[str, Any]]:
    """A model for `classes` classes, and the origin of its weights: source, sha256, tensors and share loaded, licence.

    Raises:
        ConfigError: there is no such model, or it does not take one of `model.options`.
        WeightsError: weights are missing, cannot be downloaded, or fit too little of the model.
    """
    from_hub = config.pretrained and config.weights is None
    if config.name.startswith(resnet.PREFIX):
        backbone = _build_resnet(config, classes)
    else:
        backbone = _build_timm(config, classes, pretrained=from_hub)  # timm is strict: all but the head
    origin: dict[str, Any] = {"source": "random", "tensors": 0, "share": 0.0}
    if from_hub:
        origin = {
            "source": _hub_name(backbone.pretrained_cfg),
            "tensors": len(backbone_tensors(backbone)),
            "share": 1.0,
        }
    elif config.weights == packaged_weights.PACKAGE:
        origin = packaged_weights.load_packaged(backbone, config.name)
    elif config.weights is not None:
        origin = load_pretrained(backbone, config.weights)
    if config.pretrained:
        origin["licence"] = licence_of(config.name, origin)
    pretrained_cfg, channels = backbone.pretrained_cfg, getattr(backbone, "in_chans", 3)
    if channels not in (1, 3):
        raise ConfigError(
            f"model.options: images have 3 channels, or 1 when converted to grey, not {channels}"
        )
    if config.pool == "gem":
        pool_by_gem(backbone)
    mid_head = mid_level_head(backbone, classes) if config.mid_level_head else None
    mean, std = config.mean or pretrained_cfg["mean"], config.std or pretrained_cfg["std"]
    # What a file of weights has learned from is not known.
    if from_hub or config.weights == packaged_weights.PACKAGE:
        _check_normalisation(mean, std, pretrained_cfg)
    return Classifier(backbone, mean, std, mid_head, grey=channels == 1), origin


def _check_normalisation(
    mean: Sequence[float], std: Sequence[float], pretrained_cfg: Mapping[str, Any]
) -> None:
    """Warn where images are normalised differently from those that the weights were trained on."""
    for key, value in (("mean", mean), ("std", std)):
        own = list(pretrained_cfg[key])
        if list(value) != own:
            console.warn(
                f"model.{key}: {list(value)} is given, but these weights were trained on images with {own}; drop "
                f"model.{key}, or give the file of weights that it belongs to (model.weights=PATH)"
            )


def without_weights(config: ModelConfig) -> ModelConfig:
    """The same model from random weights: for a checkpoint that brings its own."""
    return config.model_copy(update={"pretrained": False, "weights": None})


def _build_resnet(config: ModelConfig, classes: int) -> resnet.ResNet:
    """A network of `pipeline.models.resnet`; the weights of timm's network of the same name fit it."""
    published = resnet.DESIGNS.get(config.name)
    if published is None:
        raise ConfigError(f"model.name: there is no {config.name!r}; there are {', '.join(resnet.DESIGNS)}")
    try:
        design = resnet.Design.model_validate({**published.model_dump(), **config.options})
    except ValidationError as error:
        problems = [messages.sentence(problem, config.options, resnet.Design) for problem in error.errors()]
        raise ConfigError(f"model.options of {config.name}: {'; '.join(dict.fromkeys(problems))}") from error
    network = resnet.ResNet(
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
        twin_config = config.model_copy(update={"name": resnet.WEIGHTS[config.name], "options": {}})
        twin = _build_timm(twin_config, classes, pretrained=True)
        network.load_state_dict(twin.state_dict())
        network.pretrained_cfg = twin.pretrained_cfg
    return network


def _build_timm(config: ModelConfig, classes: int, *, pretrained: bool) -> Any:
    if config.name.startswith("local-dir:"):
        raise ConfigError(
            f"model.name: {config.name} is a folder; give the network's name in timm, and model.weights=PATH for a "
            "file of its weights"
        )
    options = _timm_options(config)
    try:
        with option_errors(
            f"model.options: {config.name} does not take {options}", "use other values, or drop them"
        ):
            backbone = timm.create_model(config.name, pretrained, num_classes=classes, **options)
            head_of(backbone)
            return backbone
    except OSError as error:  # the hub clients' network errors are OSErrors
        raise WeightsError(
            f"{config.name}: its weights cannot be downloaded ({type(error).__name__}); where there "
            f"is a network, torch.save timm.create_model({config.name!r}, pretrained=True).state_dict(), "
            "copy the file here and give model.weights=PATH; or start from random weights: model.pretrained=false"
        ) from error
    except ConfigError as error:
        raise _of_name(config.name, str(error.__cause__)) or error from error.__cause__


def _of_name(name: str, said: str) -> ConfigError | None:
    """The sentence for a name that timm does not know; None where timm has said something else."""
    if "Unknown model" in said or "no source prefix" in said:
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has all names"
        return ConfigError(f"model.name: timm has no model {name!r}; {hint}")
    if "Invalid pretrained tag" in said or "No pretrained weights" in said:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*")) or "none"
        return ConfigError(f"model.name: no weights are published as {name!r}; there are: {tags}")
    return None


def _timm_options(config: ModelConfig) -> dict[str, Any]:
    """The arguments of timm.create_model; settings at their default are left out, as not every model takes them."""
    if foreign := sorted(OF_FACTORY & config.options.keys()):
        raise ConfigError(
            f"model.options: {foreign[0]} is not a network option; weights are chosen by model.name, model.pretrained "
            "and model.weights=PATH, and classes by the data; drop it"
        )
    named = {
        "drop_rate": ("dropout", config.dropout),
        "drop_path_rate": ("stochastic_depth", config.stochastic_depth),
        "global_pool": ("pool", config.pool),
    }
    for option, (key, value) in named.items():
        if value and config.options.get(option, value) != value:
            raise ConfigError(
                f"model.options: {option}={config.options[option]} contradicts model.{key}={value}; drop one of the two"
            )
    given = {option: value for option, (_, value) in named.items() if value and value != "gem"}
    return {**given, **config.options}


def _hub_name(pretrained_cfg: Mapping[str, Any]) -> str:
    return str(pretrained_cfg.get("hf_hub_id") or pretrained_cfg.get("url"))
