"""Plots as SVG that takes its colours and its font from the page, in its light and its dark theme."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.plots import training_curves
from pipeline.runs.log import Log

# Placeholders for the colours of the page: each is replaced in the SVG by a CSS variable.
INK, SOFT, RULE, ACCENT = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", RULE: "var(--rule)", ACCENT: "var(--accent)"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
PANEL_INCHES = (3.6, 2.7)

Draw = Callable[[Axes], None]


def curves(log: Log, chosen: int) -> str:
    """Loss and top-1 of training and validation against the epoch, with marks for phases and the chosen epoch.

    Empty before the first epoch is over.

    Args:
        chosen: the epoch of the evaluated checkpoint.
    """
    epochs, validations = pd.DataFrame(log.epochs()), pd.DataFrame(log.validations())
    if epochs.empty:
        return ""

    def panel(value: str, title: str) -> Draw:
        def draw(axes: Axes) -> None:
            for part, colour, style in (("train", SOFT, "--"), ("val", ACCENT, "-")):
                name, records = f"{part}_{value}", epochs if part == "train" else validations
                if name in records and records[name].notna().any():
                    label = "training" if part == "train" else "validation"
                    dot = "o" if len(records) == 1 else None  # a line has two points
                    axes.plot(records["epoch"], records[name], style, marker=dot, color=colour, label=label)
            axes.axvline(chosen, color=ACCENT, linewidth=1, linestyle=":")
            training_curves.mark_phases(axes, log, SOFT)
            axes.set(xlabel="epoch", title=title)
            axes.set_ylim(bottom=0, top=1.02 if value == "top1" else None)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(loc="best")

        return draw

    return _svg("curves", [panel("loss", "cross-entropy (nats)"), panel("top1", "top-1 accuracy")])


def reliability(bins: pd.DataFrame) -> str:
    """Accuracy against confidence, a dot a bin; and the same after temperature scaling, if it is in the table.

    Args:
        bins: the table `reliability.csv`.
    """

    def panel(suffix: str, title: str) -> Draw:
        def draw(axes: Axes) -> None:
            filled = bins[bins[f"n{suffix}"] > 0]
            axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":")
            area = 20 + 230 * filled[f"n{suffix}"] / filled[f"n{suffix}"].max()
            axes.plot(filled[f"confidence{suffix}"], filled[f"accuracy{suffix}"], color=ACCENT, linewidth=1)
            axes.scatter(
                filled[f"confidence{suffix}"],
                filled[f"accuracy{suffix}"],
                s=area.to_numpy(),
                color=ACCENT,
                alpha=0.55,
                linewidths=0,
                clip_on=False,
            )
            axes.set(xlabel="mean confidence", ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1))
            axes.set_box_aspect(1)

        return draw

    panels = [panel("", "as predicted")]
    if "n_scaled" in bins and bins["n_scaled"].notna().any():
        panels.append(panel("_scaled", "after temperature scaling"))
    return _svg("reliability", panels)


def coverage(curve: pd.DataFrame) -> str:
    """Accuracy of the most confident predictions against their share.

    Args:
        curve: the table `coverage.csv`.
    """

    def draw(axes: Axes) -> None:
        axes.plot(curve["coverage"], curve["accuracy"], color=ACCENT)
        low = max(0.0, float(curve["accuracy"].min()) - 0.05)
        axes.set(xlabel="share of images answered", ylabel="accuracy of the answers", xlim=(0, 1.01))
        axes.set_ylim(low, 1.005)

    return _svg("coverage", [draw])


def accuracy_by_training_images(classes: pd.DataFrame) -> str:
    """Accuracy of each class against the number of its training images."""

    def draw(axes: Axes) -> None:
        axes.scatter(
            classes["train_images"], classes["accuracy"], s=22, color=ACCENT, alpha=0.5, linewidths=0
        )
        axes.set(xlabel="training images of the class", ylabel="accuracy of the class", ylim=(-0.02, 1.02))

    return _svg("training-images", [draw])


def _svg(name: str, panels: Sequence[Draw]) -> str:
    """The panels as `<svg>` elements; the page arranges them side by side or one below the other."""
    return "".join(_panel(f"{name}-{number}", draw) for number, draw in enumerate(panels, 1))


def _panel(name: str, draw: Draw) -> str:
    """One `<svg>` element whose ids begin with `name`."""
    style: Any = STYLE | {"svg.hashsalt": name}
    with mpl.rc_context(style):
        figure = Figure(figsize=PANEL_INCHES, layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        no_metadata: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', text, count=1)
