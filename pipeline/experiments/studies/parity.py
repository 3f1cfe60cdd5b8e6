"""Compare the hand-made networks with the libraries': outputs, gradients, and weights that were trained here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import timm
import torch
import torchvision
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.common import seeding
from pipeline.experiments.studies import results
from pipeline.experiments.studies.plan import Member
from pipeline.models.resnet import DESIGNS, ResNet
from pipeline.plots.style import MARK, STYLE, save

TOLERANCE = 1e-9
SIDE_PX, IMAGES, CLASSES = 64, 2, 1000
LIBRARIES = {"torchvision": torchvision.models.get_model, "timm": timm.create_model}
MEASURES = {
    "unlike": "before,\nlogits",  # different weights: shows that a difference would be seen
    "logits": "same weights,\nlogits in eval()",
    "logits_training": "logits\nin train()",
    "gradients": "gradients",
    "statistics": "running\nstatistics",
    "trained": "trained here,\nlogits there",
}
FRESH = ("logits", "logits_training", "gradients", "statistics")
DRAWN_ZERO = 1e-18


def measure(members: Sequence[Member]) -> pd.DataFrame:
    """A row for each run and library: largest absolute differences in float64, over both directions of the copy.

    The columns are those of `MEASURES`. All but `trained` compare new networks of 1,000 classes on noise, with
    random norms; `unlike` before the weights are copied. `trained` compares the run's best network with the
    library's that has loaded its state dict by name, on the validation images.

    Raises:
        RuntimeError: names or shapes of the state dicts differ.
    """
    rows = []
    for member in members:
        for library in LIBRARIES:
            about: dict[str, Any] = {"condition": library, "arm": member.arm, "seed": member.seed}
            fresh = compare_new(member.config.model.name, library, member.seed)
            rows.append({**about, **fresh, "trained": _compare_trained(member, library)})
    return pd.DataFrame(rows)


def compare_new(name: str, library: str, seed: int) -> dict[str, float]:
    """The larger differences of two: our network with the library's weights, and the library's with ours."""
    torch.manual_seed(seeding.seed_of("parity", seed))
    theirs, ours = _library_network(library, name, CLASSES), ResNet(DESIGNS[name], CLASSES)
    randomise_norms(theirs, seed)
    randomise_norms(ours, seed + 1)
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(IMAGES, 3, SIDE_PX, SIDE_PX, generator=random, dtype=torch.float64)
    label = torch.randint(CLASSES, (IMAGES,), generator=random)
    weights = {key: value.clone() for key, value in ours.double().state_dict().items()}
    with torch.no_grad():
        unlike = float((ours.eval()(noise) - theirs.double().eval()(noise)).abs().max())
    differences = [compare(ours, theirs, noise, label)]
    ours.load_state_dict(weights)
    differences.append(compare(theirs, ours, noise, label))
    return {
        "unlike": unlike,
        **{key: max(getattr(direction, key) for direction in differences) for key in FRESH},
    }


@torch.no_grad()
def _compare_trained(member: Member, library: str) -> float:
    model = results.load_network(member).double()
    pixels, label = results.validation_images(member)
    theirs = _library_network(library, member.config.model.name, int(label.max()) + 1).double().eval()
    theirs.load_state_dict(model.backbone.state_dict())
    normalised: Tensor = (pixels.double() - model.mean) / model.std
    return float((model(pixels) - theirs(normalised)).abs().max())


def _library_network(library: str, name: str, classes: int) -> nn.Module:
    network: nn.Module = LIBRARIES[library](name.partition("/")[2], num_classes=classes)
    return network


def draw(path: Path, title: str, differences: pd.DataFrame) -> None:
    """Draw each difference as a dot, and the limit."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 3.6), layout="constrained")
        axes = figure.subplots()
        groups = list(differences.groupby(["arm", "condition"], sort=False))
        for number, ((arm, library), group) in enumerate(groups):
            shift = 0.16 * (number - (len(groups) - 1) / 2)
            for place, name in enumerate(MEASURES):
                axes.plot(
                    [place + shift] * len(group),
                    group[name].clip(lower=DRAWN_ZERO),
                    "o",
                    color=f"C{number}",
                    markersize=4,
                    alpha=0.6,
                    label=f"{arm}, {library}" if place == 0 else None,
                )
        axes.axhline(TOLERANCE, color=MARK, linestyle="--", linewidth=1, label="limit 1e-9")
        axes.set_yscale("log")
        axes.set_xticks(range(len(MEASURES)), list(MEASURES.values()))
        axes.set_ylabel(f"largest difference (float64)\n0 is drawn at {DRAWN_ZERO:g}")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.suptitle(title)
        save(figure, path)


@dataclass(frozen=True)
class Differences:
    """Largest absolute differences between two networks, in float64."""

    logits: float
    """in evaluation mode"""
    logits_training: float
    """in training mode, where batch norm takes the statistics of the batch"""
    loss: float
    """nats, in training mode"""
    gradients: float
    """of the mean cross-entropy, over all parameters, in training mode"""
    statistics: float
    """of the running means and variances after a pass in training mode"""

    @property
    def largest(self) -> float:
        """The largest of all."""
        return max(self.logits, self.logits_training, self.loss, self.gradients, self.statistics)


def randomise_norms(model: nn.Module, seed: int) -> None:
    """Draw the weights and statistics of all norms, so that no term is hidden by a 0 or a 1."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                drawn = torch.rand(tensor.shape, generator=random, dtype=torch.float64)
                tensor.data.copy_(low + (high - low) * drawn)


def compare(network: nn.Module, reference: nn.Module, images: Tensor, label: Tensor) -> Differences:
    """Load the weights of `reference` into `network` by name, and compare them; both become float64.

    Args:
        images: float64 [B, D, H, W].
        label: int64 [B].

    Raises:
        RuntimeError: the names or shapes of the two state dicts are not the same.
    """
    network, reference = network.double(), reference.double()
    network.load_state_dict(reference.state_dict())
    with torch.no_grad():
        logits = _difference(network.eval()(images), reference.eval()(images))
    training_logits, loss = _forward_backward(network, images, label)
    reference_logits, reference_loss = _forward_backward(reference, images, label)
    parameters, reference_parameters = dict(network.named_parameters()), dict(reference.named_parameters())
    state, reference_state = network.state_dict(), reference.state_dict()
    return Differences(
        logits=logits,
        logits_training=_difference(training_logits, reference_logits),
        loss=_difference(loss, reference_loss),
        gradients=max(
            _difference(parameters[name].grad, reference_parameters[name].grad) for name in parameters
        ),
        statistics=max(_difference(state[name].double(), reference_state[name].double()) for name in state),
    )


def _forward_backward(model: nn.Module, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and loss in training mode; the gradients are left in the parameters."""
    model.train().zero_grad()
    logits = model(images)
    loss = F.cross_entropy(logits, label)
    loss.backward()  # type: ignore[no-untyped-call]
    return logits.detach(), loss.detach()


def _difference(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None and b is not None, "every parameter has a gradient"
    return float((a - b).abs().max())
