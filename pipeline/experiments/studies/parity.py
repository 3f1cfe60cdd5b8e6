"""Whether the hand-made networks are the libraries': outputs, gradients, and weights that were trained here."""

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
from pipeline.experiments.studies.plan import Member
from pipeline.experiments.studies.trained_runs import images, network
from pipeline.models.resnet import DESIGNS, ResNet
from pipeline.plots.style import MARK, STYLE, save

TOLERANCE = 1e-9
SIDE_PX, IMAGES, CLASSES = 64, 2, 1000
LIBRARIES = {"torchvision": torchvision.models.get_model, "timm": timm.create_model}
MEASURES = {
    "unlike": "before,\nlogits",  # with weights of their own: that a difference would be seen
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

    The columns are those of `MEASURES`. All but the last compare new networks of 1,000 classes on noise, whose
    norms are drawn, too: the first before any copy. The last one is of the run's best network, its state dict
    loaded by name into the library's, on the validation images.

    Raises:
        RuntimeError: names or shapes of the state dicts differ.
    """
    rows = []
    for member in members:
        for library in LIBRARIES:
            about: dict[str, Any] = {"condition": library, "arm": member.arm, "seed": member.seed}
            found = _fresh(member.config.model.name, library, member.seed)
            rows.append({**about, **found, "trained": _trained(member, library)})
    return pd.DataFrame(rows)


def _fresh(name: str, library: str, seed: int) -> dict[str, float]:
    """The larger difference of two: our network with the library's weights, and the library's with ours."""
    torch.manual_seed(seeding.seed_of("parity", seed))
    theirs, own = _of_library(library, name, CLASSES), ResNet(DESIGNS[name], CLASSES)
    draw_state(theirs, seed)
    draw_state(own, seed + 1)
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(IMAGES, 3, SIDE_PX, SIDE_PX, generator=random, dtype=torch.float64)
    label = torch.randint(CLASSES, (IMAGES,), generator=random)
    weights = {key: value.clone() for key, value in own.double().state_dict().items()}
    with torch.no_grad():
        unlike = float((own.eval()(noise) - theirs.double().eval()(noise)).abs().max())
    both = [compare(own, theirs, noise, label)]
    own.load_state_dict(weights)
    both.append(compare(theirs, own, noise, label))
    return {"unlike": unlike, **{key: max(getattr(one, key) for one in both) for key in FRESH}}


@torch.no_grad()
def _trained(member: Member, library: str) -> float:
    model = network(member).double()
    pixels, label = images(member)
    theirs = _of_library(library, member.config.model.name, int(label.max()) + 1).double().eval()
    theirs.load_state_dict(model.backbone.state_dict())
    normalised: Tensor = (pixels.double() - model.mean) / model.std
    return float((model(pixels) - theirs(normalised)).abs().max())


def _of_library(library: str, name: str, classes: int) -> nn.Module:
    network: nn.Module = LIBRARIES[library](name.partition("/")[2], num_classes=classes)
    return network


def draw(path: Path, title: str, found: pd.DataFrame) -> None:
    """Each difference as a dot, and the limit."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 3.6), layout="constrained")
        axes = figure.subplots()
        groups = list(found.groupby(["arm", "condition"], sort=False))
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
    """of that pass, nats"""
    gradients: float
    """of the mean cross-entropy, over all parameters, in training mode"""
    statistics: float
    """of the running means and variances that this pass leaves"""

    @property
    def largest(self) -> float:
        """The largest of them."""
        return max(self.logits, self.logits_training, self.loss, self.gradients, self.statistics)


def draw_state(model: nn.Module, seed: int) -> None:
    """Move norms and their statistics away from 0 and 1, so that no term of a network is hidden by its start."""
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


def compare(one: nn.Module, other: nn.Module, images: Tensor, label: Tensor) -> Differences:
    """Give `one` the weights of `other` by name, and compare them; both become float64 and learn no step.

    Args:
        images: float64 [B, D, H, W].
        label: int64 [B].

    Raises:
        RuntimeError: the names or shapes of the two state dicts are not the same.
    """
    one, other = one.double(), other.double()
    one.load_state_dict(other.state_dict())
    with torch.no_grad():
        logits = _difference(one.eval()(images), other.eval()(images))
    (own, own_loss), (theirs, their_loss) = (_learn(model, images, label) for model in (one, other))
    of_one, of_other = dict(one.named_parameters()), dict(other.named_parameters())
    gradients = max(_difference(of_one[name].grad, of_other[name].grad) for name in of_one)
    state, other_state = one.state_dict(), other.state_dict()
    return Differences(
        logits=logits,
        logits_training=_difference(own, theirs),
        loss=_difference(own_loss, their_loss),
        gradients=gradients,
        statistics=max(_difference(state[name].double(), other_state[name].double()) for name in state),
    )


def _learn(model: nn.Module, images: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and loss in training mode; the gradients are left in the parameters."""
    model.train().zero_grad()
    logits = model(images)
    loss = F.cross_entropy(logits, label)
    loss.backward()  # type: ignore[no-untyped-call]
    return logits.detach(), loss.detach()


def _difference(one: Tensor | None, other: Tensor | None) -> float:
    assert one is not None and other is not None, "every parameter has a gradient"
    return float((one - other).abs().max())
