"""Figures of a training: loss and accuracy, made from its log; learning rates, before it begins; the range test."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.plots import style
from pipeline.plots.style import MARK, STYLE, TRAIN, VALIDATION
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Log, LogRecord

FAR_APART = 5.0  # ratio of peak rates beyond which the axis is logarithmic


def draw(run: RunDirectory) -> None:
    """Draw the curves of a run from its log; nothing before its first epoch is over."""
    log = run.read_log(steps=False)
    if log.epochs():
        _draw(run, log)
        gc.collect()  # a figure is 4 MB in circles of references, and some twenty would wait to be collected


def _draw(run: RunDirectory, log: Log) -> None:
    epochs, validations = log.epochs(), log.validations()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        losses, accuracies = figure.subplots(1, 2)
        _draw_curves(losses, epochs, validations, "loss", "loss (nats)")
        _draw_curves(accuracies, epochs, validations, "top1", "top-1 accuracy")
        accuracies.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _mark_best(accuracies, log)
        for axes in (losses, accuracies):
            mark_phases(axes, log, MARK)
            _mark_drops(axes, epochs)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if len(validations) > len(epochs):
                _show_steps(axes, epochs[-1]["step"] / epochs[-1]["epoch"])
        losses.legend(loc="upper right")
        figure.suptitle(run.path.name)
        style.save(figure, run.curves_file)


def draw_rates(path: Path, title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw learning rate and momentum against the epoch.

    Args:
        lines: one a phase: `name`, `known` (whether its epochs are known), and the lists `epoch`, `lr`
            and `momentum`.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 5), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        for number, line in enumerate(lines):
            look: dict[str, Any] = {"color": f"C{number}", "linestyle": "-" if line["known"] else "--"}
            label = line["name"] if line["known"] else f"{line['name']}, if its rule is met"
            upper.plot(line["epoch"], line["lr"], label=label, **look)
            lower.plot(line["epoch"], line["momentum"], **look)
        upper.set_ylabel("learning rate")
        lower.set_ylabel("momentum")
        lower.set_xlabel("epoch")
        lower.set_ylim(-0.05, 1.05)
        peaks = [max(line["lr"]) for line in lines]
        if max(peaks) > FAR_APART * min(peaks):  # on a linear axis Adam's rate would be flat beside SGD's
            upper.set_yscale("log")
            upper.set_ylim(bottom=min(peaks) / 100)
        else:
            upper.set_ylim(bottom=0)
        upper.legend(loc="upper right")
        figure.suptitle(title)
        style.save(figure, path)


def draw_range_test(
    path: Path, lrs: Sequence[float], losses: Sequence[float], proposed: float, at_most: float
) -> None:
    """Draw the smoothed loss (nats) against the learning rate, with the two proposed rates."""
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
        style.save(figure, path)


def _draw_curves(
    axes: Axes, epochs: Sequence[LogRecord], validations: Sequence[LogRecord], name: str, label: str
) -> None:
    series = [(epochs, "train", TRAIN)]
    if validations[0][f"val_{name}"] is not None:
        series.append((validations, "val", VALIDATION))
    dots: dict[str, Any] = {"marker": "o", "markersize": 3}
    for records, part, colour in series:
        axes.plot(
            [record["epoch"] for record in records],
            [record[f"{part}_{name}"] for record in records],
            color=colour,
            label={"train": "train", "val": "validation"}[part],
            **(dots if max(len(epochs), len(records)) <= 30 else {}),
        )
    axes.set_ylabel(label)


def _show_steps(axes: Axes, steps_per_epoch: float) -> None:
    """A second axis, above, that counts steps, for validations within epochs."""
    to_steps: Any = (lambda epoch: epoch * steps_per_epoch, lambda step: step / steps_per_epoch)
    axes.secondary_xaxis("top", functions=to_steps).set_xlabel("step")


def _mark_best(axes: Axes, log: Log) -> None:
    best = log.best()
    if best is None:
        return
    axes.plot(best["epoch"], best["val_top1"], "o", color=MARK, zorder=3)
    axes.annotate(
        f"{best['val_top1']:.1%}, "
        + (f"epoch {best['epoch']}" if best["kind"] == "epoch" else f"step {best['step']}"),
        (best["epoch"], best["val_top1"]),
        (0, -20),
        textcoords="offset points",
        ha="right" if best["epoch"] > 0.7 * log.validations()[-1]["epoch"] else "left",
        color=MARK,
    )


def mark_phases(axes: Axes, records: Sequence[LogRecord], colour: str) -> None:
    """A dashed line where a phase begins, with the name of its optimizer; nothing for the first phase."""
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
    """A dotted line where a constant learning rate fell by a third or more: a step schedule, or a plateau."""
    for earlier, before, after in zip(epochs, epochs[1:], epochs[2:], strict=False):
        constant = earlier["lr"] == before["lr"] and before["phase"] == after["phase"]
        if constant and after["lr"] <= before["lr"] * 2 / 3:
            axes.axvline(before["epoch"], color="0.5", linestyle=":", linewidth=1)
