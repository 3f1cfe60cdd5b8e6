"""Pictures of a training, from its log alone: loss and accuracy; and of rates, before anything is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.plots.style import MARK, STYLE, TRAIN, VALIDATION, save
from pipeline.runs.log import LogRecord, best_record, read_log

FAR_APART = 5.0


def draw(run_dir: Path) -> None:
    """Draw `curves.png` from a run's `log.jsonl`; nothing before its first epoch is over."""
    found = read_log(run_dir / "log.jsonl")
    epochs = [record for record in found if record["kind"] == "epoch"]
    if not epochs:
        return
    looks = sorted((r for r in found if r["kind"] in ("val", "epoch")), key=lambda record: record["step"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        losses, accuracies = figure.subplots(1, 2)
        _curves(losses, epochs, looks, "loss", "loss (nats)")
        _curves(accuracies, epochs, looks, "top1", "top-1 accuracy")
        accuracies.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _mark_best(accuracies, looks)
        for axes in (losses, accuracies):
            mark_phases(axes, found, MARK)
            _mark_drops(axes, epochs)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if len(looks) > len(epochs):
                _show_steps(axes, epochs[-1]["step"] / epochs[-1]["epoch"])
        losses.legend(loc="upper right")
        figure.suptitle(run_dir.name)
        save(figure, run_dir / "curves.png")


def draw_rates(path: Path, title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw learning rate and momentum against the epoch.

    Args:
        lines: a line a phase: `name`, `known` (whether its epochs are known), and the lists `epoch`, `lr`
            and `momentum`.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 5), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        for number, line in enumerate(lines):
            style: dict[str, Any] = {"color": f"C{number}", "linestyle": "-" if line["known"] else "--"}
            label = line["name"] if line["known"] else f"{line['name']}, if its rule is met"
            upper.plot(line["epoch"], line["lr"], label=label, **style)
            lower.plot(line["epoch"], line["momentum"], **style)
        upper.set_ylabel("learning rate")
        lower.set_ylabel("momentum")
        lower.set_xlabel("epoch")
        lower.set_ylim(-0.05, 1.05)
        peaks = [max(line["lr"]) for line in lines]
        if max(peaks) > FAR_APART * min(peaks):  # Adam's rate would lie flat on SGD's axis
            upper.set_yscale("log")
            upper.set_ylim(bottom=min(peaks) / 100)
        else:
            upper.set_ylim(bottom=0)
        upper.legend(loc="upper right")
        figure.suptitle(title)
        save(figure, path)


def draw_range_test(
    path: Path, lrs: Sequence[float], losses: Sequence[float], proposed: float, at_most: float
) -> None:
    """Draw the smoothed loss (nats) against the learning rate, and the rates that are proposed."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(lrs, losses, color=VALIDATION)
        axes.axvline(proposed, color=MARK, linestyle="--", label=f"steepest: {proposed:.2g}")
        axes.axvline(at_most, color=MARK, linestyle=":", label=f"a tenth of the lowest's: {at_most:.2g}")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("smoothed training loss (nats)")
        axes.legend()
        save(figure, path)


def _curves(
    axes: Axes, epochs: Sequence[LogRecord], looks: Sequence[LogRecord], name: str, label: str
) -> None:
    number = [record["epoch"] for record in epochs]
    few: dict[str, Any] = {"marker": "o", "markersize": 3} if len(epochs) <= 30 else {}
    axes.plot(number, [record[f"train_{name}"] for record in epochs], color=TRAIN, label="train", **few)
    if looks[0][f"val_{name}"] is not None:
        values = [record[f"val_{name}"] for record in looks]
        often = few if len(looks) <= 30 else {}
        axes.plot(
            [record["epoch"] for record in looks], values, color=VALIDATION, label="validation", **often
        )
    axes.set_ylabel(label)


def _show_steps(axes: Axes, steps_per_epoch: float) -> None:
    """A second axis, above, for what is validated between epochs."""
    to_steps: Any = (lambda epoch: epoch * steps_per_epoch, lambda step: step / steps_per_epoch)
    axes.secondary_xaxis("top", functions=to_steps).set_xlabel("step")


def _mark_best(axes: Axes, looks: Sequence[LogRecord]) -> None:
    if looks[0]["val_top1"] is None:
        return
    best = best_record(looks)
    assert best is not None
    axes.plot(best["epoch"], best["val_top1"], "o", color=MARK, zorder=3)
    axes.annotate(
        f"{best['val_top1']:.1%}, "
        + (f"epoch {best['epoch']}" if best["kind"] == "epoch" else f"step {best['step']}"),
        (best["epoch"], best["val_top1"]),
        (0, -20),
        textcoords="offset points",
        ha="right" if best["epoch"] > 0.7 * looks[-1]["epoch"] else "left",
        color=MARK,
    )


def mark_phases(axes: Axes, records: Sequence[LogRecord], colour: str) -> None:
    """A line where an optimizer takes over, its name at the top; nothing where there is one alone."""
    for switch in (record for record in records if record["kind"] == "phase"):
        axes.axvline(switch["epoch"], color=colour, linestyle="--", linewidth=1)
        axes.annotate(
            f"{switch['phase']} from here",
            (switch["epoch"], 1),
            (3, -9),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=colour,
        )


def _mark_drops(axes: Axes, epochs: Sequence[LogRecord]) -> None:
    """A dotted line where a learning rate that had stayed fell by a third or more: a step, or a plateau."""
    for earlier, before, after in zip(epochs, epochs[1:], epochs[2:], strict=False):
        stayed = earlier["lr"] == before["lr"] and before["phase"] == after["phase"]
        if stayed and after["lr"] <= before["lr"] * 2 / 3:
            axes.axvline(before["epoch"], color="0.5", linestyle=":", linewidth=1)
