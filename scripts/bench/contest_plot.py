"""Accuracy against seconds, a line a contestant."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from contest_scores import Clock, Result, curve, moments
from matplotlib.figure import Figure

from pipeline.plots.style import MARK, STYLE, save

COLOURS = {
    "timm": "#1f6feb",
    "fastai": "#2a9d8f",
    "torchvision": "#e9a23b",
    "the article's script": "#8a5fbf",
    "Hugging Face Trainer": "#5b4636",
    "AutoGluon": "#8a8f98",
}
UNITS: dict[Clock, str] = {"wall_s": "seconds", "cpu_s": "processor seconds"}


def plot(results: Mapping[str, Sequence[Result]], ours: str, clock: Clock, path: Path) -> None:
    """Draw what each contestant has at each moment, as validation chose it; the clock in logarithms.

    Args:
        results: contestant -> its runs.
        ours: the contestant whose line is drawn above the others.
    """
    lines = {name: curve(found, clock) for name, found in results.items()}
    lines = dict(sorted(lines.items(), key=lambda item: -item[1][-1][1]))
    end_s = max(moment for found in results.values() for moment in moments(found, clock))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        axes = figure.subplots()
        for name, line in lines.items():
            seconds, accuracy = zip(*[*line, (1.1 * end_s, line[-1][1])], strict=True)
            mine = name == ours
            colour = MARK if mine else COLOURS[name.partition(",")[0]]
            axes.step(
                seconds,
                [100 * value for value in accuracy],
                where="post",
                color=colour,
                linewidth=2.5 if mine else 1.3,
                linestyle="--" if name.endswith("tuned") else "-",
                label=f"{name}, {100 * line[-1][1]:.1f} %",
                zorder=3 if mine else 2,
            )
            axes.plot(seconds[0], 100 * accuracy[0], "o", color=colour, markersize=3.5, zorder=3)
        axes.set_xscale("log")
        ticks = [tick for tick in (10, 20, 30, 60, 120, 300, 600, 1200, 2400) if tick <= 1.2 * end_s]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(0.9 * min(line[0][0] for line in lines.values()), 1.1 * end_s)
        axes.set_xlabel(f"{UNITS[clock]} from an unpacked folder")
        axes.set_ylabel("test top-1, %")
        figure.legend(fontsize=8, loc="outside right upper")
        save(figure, path)
