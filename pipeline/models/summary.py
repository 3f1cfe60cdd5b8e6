"""The layers of a network with their output shapes, parameters and multiply-adds. Needs no data."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.common import console
from pipeline.config.schema import Config
from pipeline.data.sources.source import source_of
from pipeline.models.build import build_model, without_weights
from pipeline.models.classifier import Classifier
from pipeline.models.option_errors import option_errors, where_size_matters

FLOPS_A_MULTIPLY_ADD = 2  # torch's counter counts both


def summarise(config: Config) -> dict[str, Any]:
    """Show a network's layers and totals; return them in plain types.

    A multiply-add counts as one, as in He et al. 2015 and in torchvision's documentation. `torch.utils.flop_counter`
    counts them in convolutions, linear layers and attention, and none in norms, activations and pooling. The
    numbers are for one image of `data.image_px`, in evaluation.

    Raises:
        ConfigError: there is no such model, or it does not take images of this size.
    """
    classes = config.summary.classes or source_of(config.data).expected[0]
    with torch.device("meta"):  # where tensors have a shape and no values
        model, _ = build_model(without_weights(config.model), classes)
    with option_errors(*where_size_matters(config, model.backbone, config.data.image_px)):
        layers, multiply_adds = measure(model.eval(), config.data.image_px, config.summary.depth)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    name, px = config.model.name, config.data.image_px
    console.show_table(
        f"{name}: an image of {px} px, {classes} classes",
        ["layer", "kind", "output", "parameters", "multiply-adds"],
        [
            [
                layer["name"],
                layer["kind"],
                " x ".join(map(str, layer["output"])),
                layer["parameters"],
                layer["multiply_adds"],
            ]
            for layer in layers
        ],
    )
    console.say(
        f"total  {parameters / 1e6:.3f} M parameters, {multiply_adds / 1e9:.3f} G multiply-adds an image"
    )
    return {
        "model": name,
        "classes": classes,
        "image_px": px,
        "parameters": parameters,
        "multiply_adds": multiply_adds,
        "layers": layers,
    }


def measure(model: Classifier, image_px: int, depth: int) -> tuple[list[dict[str, Any]], int]:
    """The layers in the order in which they are called, and the multiply-adds of all of them.

    Args:
        model: on the device "meta".
        depth: below the backbone, of the modules that are shown.

    Returns:
        A dictionary a layer (name, kind, output shape without the batch, parameters, multiply_adds).
    """
    shapes: dict[str, list[int]] = {}
    shown = _shown(model, depth)
    for name, module in shown.items():
        module.register_forward_hook(lambda _, __, output, name=name: shapes.update({name: _shape(output)}))
    images = torch.zeros(1, 3, image_px, image_px, dtype=torch.uint8, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    flops = {module: sum(counts.values()) for module, counts in counter.get_flop_counts().items()}
    layers = [
        {
            "name": name.removeprefix("backbone."),
            "kind": type(shown[name]).__name__,
            "output": shape,
            "parameters": sum(parameter.numel() for parameter in shown[name].parameters()),
            "multiply_adds": flops.get(f"{type(model).__name__}.{name}", 0) // FLOPS_A_MULTIPLY_ADD,
        }
        for name, shape in shapes.items()
    ]
    total = counter.get_total_flops() // FLOPS_A_MULTIPLY_ADD
    parameters = sum(parameter.numel() for parameter in model.parameters())
    left = {
        "parameters": parameters - sum(layer["parameters"] for layer in layers),
        "multiply_adds": total - sum(layer["multiply_adds"] for layer in layers),
    }
    if any(left.values()):  # such as a transformer's tokens, which stand beside its blocks
        layers.append({"name": "others", "kind": "", "output": [], **left})
    return layers, total


def _shown(model: nn.Module, depth: int) -> dict[str, nn.Module]:
    """The modules of a depth, and those above it that have weights of their own or no modules inside."""
    shown: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        level = len(name.removeprefix("backbone.").split("."))
        inside = any(name.startswith(f"{outer}.") for outer in shown)
        single = not any(True for _ in module.children()) or any(
            True for _ in module.parameters(recurse=False)
        )
        if name in ("", "backbone") or inside or isinstance(module, nn.Identity):
            continue
        if level == depth or (level < depth and single):
            shown[name] = module
    return shown


def _shape(output: Any) -> list[int]:
    """Without the batch; of several outputs, the first's."""
    first = output if isinstance(output, Tensor) else output[0]
    return list(first.shape[1:])
