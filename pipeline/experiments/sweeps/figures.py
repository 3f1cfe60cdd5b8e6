"""The figures of a sweep: its trials by number, their parameters side by side, and the importance of each."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from pipeline.experiments.sweeps import results
from pipeline.experiments.sweeps.parameter import Parameter
from pipeline.experiments.sweeps.plan import SweepPlan
from pipeline.plots.style import MARK, STYLE, TRAIN, VALIDATION, save

TICKS = 5  # of an axis of numbers
LABEL_WIDTH = 24  # characters


def history(path: Path, plan: SweepPlan, rows: pd.DataFrame) -> None:
    """Draw the value of each trial by number, and the best so far."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        complete, pruned = (rows[rows["state"] == state] for state in ("complete", "pruned"))
        best = complete[plan.metric].cummax() if plan.maximised else complete[plan.metric].cummin()
        axes.step(complete["number"], best, where="post", color=MARK, label="best so far")
        axes.plot(complete["number"], complete[plan.metric], "o", color=VALIDATION, label="complete")
        axes.plot(
            pruned["number"], pruned[plan.metric], "x", color=TRAIN, label="pruned: its best until then"
        )
        for number in rows.loc[rows["state"].isin(["diverged", "failed"]), "number"]:
            axes.axvline(number, color="0.7", linestyle=":", linewidth=1)
        axes.set(xlabel="trial (dotted: diverged or failed)", ylabel=plan.sweep.metric.name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _as_share(axes, plan)
        axes.legend(loc="best")
        figure.suptitle(plan.name)
        save(figure, path)


def importance(path: Path, plan: SweepPlan, shares: Mapping[str, float], complete: int) -> None:
    """Draw the share of the value's variance that each parameter explains."""
    names = list(shares)[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 1.2 + 0.4 * len(names)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(names, [shares[name] for name in names], color=VALIDATION)
        axes.bar_label(bars, [f"{shares[name]:.0%}" for name in names], padding=3)
        axes.set_xlim(0, 1.08)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"importance (fANOVA, {complete} complete trials)")
        figure.suptitle(plan.name)
        save(figure, path)


def parallel_coordinates(path: Path, plan: SweepPlan, rows: pd.DataFrame) -> None:
    """Draw each trial as a line through its parameters to its value; the best is thick, pruned ones are dashed."""
    shown = rows[rows["state"].isin(["complete", "pruned"]) & rows[plan.metric].notna()]
    scales = [_Scale.of_parameter(name, p) for name, p in plan.searched.items()]
    scales.append(_Scale.of_value(plan, shown[plan.metric]))
    chosen = results.best(plan, shown)
    best = chosen and chosen["number"]
    shades = mpl.colormaps["viridis" if plan.maximised else "viridis_r"]  # the better, the brighter
    colour = Normalize(shown[plan.metric].min(), shown[plan.metric].max())
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(2 + 2.1 * len(scales), 4.4), layout="constrained")
        axes = figure.subplots()
        for row in reversed(results.ranked(plan, shown)):
            heights = [scale.height(row[scale.column]) for scale in scales]
            is_best = row["number"] == best
            axes.plot(
                range(len(scales)),
                heights,
                color=MARK if is_best else shades(colour(row[plan.metric])),
                linewidth=2.6 if is_best else 1.1,
                linestyle="--" if row["state"] == "pruned" else "-",
                alpha=1 if is_best else 0.8,
                zorder=3 if is_best else 2,
                label=f"best: trial {best}" if is_best else None,
            )
        for place, scale in enumerate(scales):
            scale.draw(axes, place)
        axes.set(xlim=(-0.25, len(scales) - 0.45), ylim=(-0.06, 1.06), yticks=[])
        axes.set_xticks(range(len(scales)), [scale.title for scale in scales])
        axes.tick_params(axis="x", length=0, pad=8)
        axes.spines[["left", "bottom"]].set_visible(False)
        if best is not None:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
        bar = figure.colorbar(ScalarMappable(colour, shades), ax=axes, pad=0.02, label=plan.sweep.metric.name)
        bar.outline.set_visible(False)
        figure.suptitle(
            f"{plan.name}: {len(shown)} trials"
            + (", pruned dashed" if "pruned" in set(shown["state"]) else "")
        )
        save(figure, path)


class _Scale:
    """A vertical axis: the height of a value on it, from 0 to 1, and its ticks."""

    def __init__(self, column: str, title: str, ticks: Mapping[str, float], heights: Any) -> None:
        self.column, self.title, self.ticks, self.height = column, title, ticks, heights

    @classmethod
    def of_parameter(cls, name: str, parameter: Parameter) -> "_Scale":
        """The axis of a parameter over its range, logarithmic where its distribution is."""
        if parameter.choices:
            places = {
                str(choice): (number + 0.5) / len(parameter.choices)
                for number, choice in enumerate(parameter.choices)
            }
            return cls(name, name, places, lambda value: places[str(value)])
        low, high = parameter.bounds
        return cls._of_range(
            name, f"{name}\n(log)" if parameter.logarithmic else name, low, high, parameter.logarithmic
        )

    @classmethod
    def of_value(cls, plan: SweepPlan, values: "pd.Series[float]") -> "_Scale":
        """The axis of the metric from the worst to the best trial, the better the higher."""
        low, high = float(values.min()), float(values.max())
        if low == high:
            low, high = low - 0.5, high + 0.5
        scale = cls._of_range(plan.metric, plan.sweep.metric.name, low, high, False)
        if plan.maximised:
            return scale
        ticks = {label: 1 - height for label, height in scale.ticks.items()}
        return cls(scale.column, scale.title, ticks, lambda value: 1 - scale.height(value))

    @classmethod
    def _of_range(cls, column: str, title: str, low: float, high: float, logarithmic: bool) -> "_Scale":
        scale = np.log if logarithmic else (lambda value: value)
        first, last = float(scale(low)), float(scale(high))

        def height(value: Any) -> float:
            return (float(scale(value)) - first) / (last - first)

        whole = isinstance(low, int) and isinstance(high, int)
        locator = LogLocator(numticks=TICKS) if logarithmic else MaxNLocator(TICKS, integer=whole)
        within = [value for value in locator.tick_values(low, high) if low <= value <= high]
        values = within if len(within) > 1 else [low, high]
        return cls(column, title, {f"{value:.4g}": height(value) for value in values}, height)

    def draw(self, axes: Axes, place: int) -> None:
        """Draw the axis, with its ticks to the right."""
        axes.axvline(place, 0.05, 0.95, color="0.35", linewidth=1, zorder=1)
        for label, height in self.ticks.items():
            axes.plot([place - 0.02, place + 0.02], [height, height], color="0.35", linewidth=1, zorder=1)
            axes.annotate(
                textwrap.fill(label, LABEL_WIDTH),
                (place, height),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                zorder=4,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            )


def _as_share(axes: Axes, plan: SweepPlan) -> None:
    if plan.metric.endswith("top1"):
        axes.yaxis.set_major_formatter(PercentFormatter(1))
