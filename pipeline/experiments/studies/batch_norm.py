"""Measurements of batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) on trained networks.

Two tables: the accuracy in train() and in eval() by the batch size at inference, and the claims that hold
exactly, in float64.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.common import seeding
from pipeline.experiments.studies import results
from pipeline.experiments.studies.plan import Member
from pipeline.plots.style import STYLE, save

BATCHES = (4, 8, 16, 32, 64)
DRAWS = 3  # random orders of the validation images, each cut into whole batches
SMALL, LARGE = 8, 64
CLAIMS = {
    "eval_alone": "eval(): largest change of a logit when the image is looked at alone, not among 64",
    "train_company": "train(): largest change of a logit when the image is looked at among 8, not 64",
    "normalised_mean": "train(): largest mean of a normalised channel over the batch",
    "normalised_variance": "train(): largest difference of its variance from v / (v + eps), v that of the batch",
    "running_rule": "train(): largest difference of the running statistics from 0.9 old + 0.1 batch's",
    "eval_running": "eval(): largest change of the running statistics",
    "bias_train": "train(): largest change of a logit by random biases before every norm",
    "bias_gradient": "train(): largest gradient of such a bias, over the largest of a weight",
    "bias_eval": "eval(): largest change of a logit by the same biases, running statistics as they were",
}


@torch.no_grad()
def modes(model: nn.Module, image: Tensor, label: Tensor) -> dict[str, float]:
    """Top-1 (0..1) in eval(), and in train() in random batches of 4 to 64 images; the model stays as it is."""
    top1 = {"eval": float((model.eval()(image).argmax(1) == label).double().mean())}
    training = copy.deepcopy(model).train()  # its running statistics change, but are not used
    for size in BATCHES:
        is_right: list[Tensor] = []
        for draw in range(DRAWS):
            order = torch.from_numpy(seeding.generator("batch norm", size, draw).permutation(len(label)))
            for rows in torch.split(order, size):
                if len(rows) == size:
                    is_right.append(training(image[rows]).mean(0).argmax(1) == label[rows])
        top1[f"train_{size}"] = float(torch.cat(is_right).double().mean())
    return top1


def claims(model: nn.Module, image: Tensor, label: Tensor) -> dict[str, float]:
    """The numbers of `CLAIMS` for a network with batch norm and at least 64 images."""
    model = copy.deepcopy(model).double()
    few, many = image[:SMALL], image[:LARGE]
    evaluated = model.eval()(many)
    values = {}
    one_by_one = torch.cat([model(single) for single in torch.split(few, 1)])
    values["eval_alone"] = _largest_difference(one_by_one, evaluated[:SMALL])
    logits = copy.deepcopy(model).train()(many).mean(0)
    values["train_company"] = _largest_difference(copy.deepcopy(model).train()(few).mean(0), logits[:SMALL])
    values |= _first_norm(model, many)
    before = running_statistics(model)
    model.eval()(many)
    values["eval_running"] = max(map(_largest_difference, running_statistics(model), before))
    biased = with_biases(model)
    training = copy.deepcopy(biased).train()
    biased_logits = training(many).mean(0)
    F.cross_entropy(biased_logits, label[:LARGE]).backward()  # type: ignore[no-untyped-call]
    convolutions = [module for module in training.modules() if isinstance(module, nn.Conv2d)]
    bias, weight = (
        max(float(getattr(layer, name).grad.abs().max()) for layer in convolutions)
        for name in ("bias", "weight")
    )
    values["bias_train"] = _largest_difference(biased_logits, logits)
    values["bias_gradient"] = bias / weight
    values["bias_eval"] = _largest_difference(biased.eval()(many), evaluated)
    return {name: values[name] for name in CLAIMS}


def with_biases(model: nn.Module) -> nn.Module:
    """A copy with biases from N(0, 1) in all convolutions; each of them is before a batch norm."""
    biased = copy.deepcopy(model)
    random = torch.Generator().manual_seed(0)
    for module in biased.modules():
        if isinstance(module, nn.Conv2d):
            values = torch.randn(module.out_channels, generator=random, dtype=module.weight.dtype)
            module.bias = nn.Parameter(values)
    return biased


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Copies of all running means and variances."""
    return [tensor.clone() for name, tensor in model.state_dict().items() if name.endswith(("_mean", "_var"))]


def _first_norm(model: nn.Module, image: Tensor) -> dict[str, float]:
    """Check the output of the first norm in train(), and the update of its running statistics."""
    training = copy.deepcopy(model).train()
    norm = next(module for module in training.modules() if isinstance(module, nn.BatchNorm2d))
    old, calls = (norm.running_mean.clone(), norm.running_var.clone()), []  # type: ignore[union-attr]
    # A copy, because the ReLU behind the norm writes in place.
    norm.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output.clone())))
    with torch.no_grad():
        training(image)
    (before, after), dims = calls[0], (0, 2, 3)
    variance, mean = torch.var_mean(before, dims, correction=0)
    unbiased = torch.var(before, dims, correction=1)
    bias, weight = (tensor.detach().view(1, -1, 1, 1) for tensor in (norm.bias, norm.weight))
    normalised = (after - bias) / weight
    normalised_variance, normalised_mean = torch.var_mean(normalised, dims, correction=0)
    share = norm.momentum or 0.0
    batch = (mean, unbiased)
    expected = [(1 - share) * running + share * new for running, new in zip(old, batch, strict=True)]
    return {
        "normalised_mean": float(normalised_mean.abs().max()),
        "normalised_variance": _largest_difference(normalised_variance, variance / (variance + norm.eps)),
        "running_rule": max(map(_largest_difference, (norm.running_mean, norm.running_var), expected)),  # type: ignore[arg-type]
    }


def _largest_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def measure(members: Sequence[Member]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The modes of each run (a row each, with condition, arm and seed), and its claims."""
    mode_rows, claim_rows = [], []
    for member in members:
        image, label = results.validation_images(member)
        model = results.load_network(member)
        about: dict[str, Any] = {"condition": member.condition, "arm": member.arm, "seed": member.seed}
        mode_rows.append({**about, **modes(model, image, label)})
        claim_rows.append({**about, **claims(model, image, label)})
    return pd.DataFrame(mode_rows), pd.DataFrame(claim_rows)


def claims_table(claims: pd.DataFrame) -> str:
    """The claims as Markdown, a line each: mean +- sd over the networks, smallest and largest."""
    lines = [["what is measured", "networks", "mean ± sd (95 %)", "smallest", "largest"], ["---"] * 5]
    for name, claim in CLAIMS.items():
        values = claims[name]
        mean = results.format_mean(dict(results.mean_interval(values)))
        ends = [results.format_number(float(end)) for end in (values.min(), values.max())]
        lines.append([claim, str(len(values)), mean, *ends])
    return results.markdown_table(lines)


def draw(path: Path, title: str, mode_rows: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Top-1 in train() by the batch size at inference, and test top-1 by the batch size of training."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, (condition, group) in enumerate(mode_rows.groupby("condition", sort=False)):
            means = [float(group[f"train_{size}"].mean()) for size in BATCHES]
            left.plot(
                BATCHES, means, "o-", markersize=3, color=f"C{number}", label=f"trained with {condition}"
            )
            left.axhline(float(group["eval"].mean()), color=f"C{number}", linestyle=":", linewidth=1)
        left.set(xlabel="images looked at together in train()", title="validation; dotted: eval()")
        left.set_xscale("log", base=2)
        left.set_xticks(BATCHES, list(map(str, BATCHES)))
        left.set_ylabel("top-1")
        left.legend(loc="lower right")
        _by_condition(right, runs)
        for axes in (left, right):
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        figure.suptitle(title)
        save(figure, path)


def _by_condition(axes: Axes, runs: pd.DataFrame) -> None:
    names = []
    for place, (condition, group) in enumerate(_groups(runs)):
        names.append(condition)
        axes.plot([place] * len(group), group["test_top1"], "o", color=f"C{place}", markersize=4, alpha=0.6)
        axes.plot([place - 0.15, place + 0.15], [group["test_top1"].mean()] * 2, color=f"C{place}")
    axes.set(title="test, in eval(); a dot a seed", xticks=range(len(names)), xticklabels=names)


def _groups(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for condition, group in runs.groupby("condition", sort=False):
        yield str(condition), group
