"""Colours, line styles and the file format of every figure."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipeline.common import files

TRAIN, VALIDATION, MARK = "#8a8f98", "#1f6feb", "#d1495b"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, complete or not at all."""
    with files.replacing(path) as part:
        figure.savefig(part, format="png", dpi=150)
