"""An evaluation on one screen of the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import terminal

WORST = 10


def show(numbers: Mapping[str, Any], per_class: pd.DataFrame, pairs: pd.DataFrame, folder: Path) -> None:
    """Print the headline, the worst classes, the most confused pairs, and where the files are."""
    seen = per_class[per_class["n"] > 0]
    worst = seen.sort_values(["accuracy", "n"], ascending=[True, False]).head(WORST)
    terminal.show_table(
        "worst classes",
        ["class", "images", "correct", "accuracy", "95 % interval"],
        [
            [
                row.class_name,
                row.n,
                row.correct,
                row.accuracy,
                f"{row.accuracy_low:.2f} .. {row.accuracy_high:.2f}",
            ]
            for row in worst.itertuples()
        ],
    )
    if len(pairs):
        terminal.show_table(
            "most confused pairs",
            ["class a", "class b", "images", "a as b", "b as a"],
            [list(row[1:]) for row in pairs.head(WORST).itertuples()],
        )
    terminal.say(
        f"{numbers['split']}  {numbers['n']:,} images, {numbers['classes']} classes\n"
        f"  top-1 {numbers['top1']:.4f}  (95 % interval {numbers['top1_low']:.4f} .. {numbers['top1_high']:.4f})\n"
        f"  top-5 {numbers['top5']:.4f}\n"
        f"  mean per-class accuracy {numbers['per_class_mean']:.4f}"
    )
    if "test_reads" in numbers:
        terminal.say(f"  the test split has been read {numbers['test_reads']} time(s) by this run")
    names = "metrics.json, per_class.csv, predictions.csv, confusion.csv, confused_pairs.csv"
    terminal.say(f"report  {folder}: {names}")
