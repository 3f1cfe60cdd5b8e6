"""Tables beside the report, as LaTeX and CSV, for a paper: the headline numbers, and every class."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common.latex import write_table
from pipeline.explain.explain import Explained
from pipeline.report.page_values import readable

SHARES = {
    "top1": "top-1 accuracy",
    "top3": "top-3 accuracy",
    "top5": "top-5 accuracy",
    "per_class_mean": "mean accuracy over classes",
    "macro_f1": "macro F1",
    "ece": "expected calibration error",
}
NUMBERS = {"nll": "log loss (nats)", "brier": "Brier score"}
FEWEST_CLASSES = {"top3": 4, "top5": 6}
"""with fewer classes, the true one is always among the 3 or 5 that are named, and the accuracy says nothing"""
UNITS = {"share": " (%)", "difference": " (points)", "number": ""}
NONE = "--"


def write(folder: Path, metrics: Mapping[str, Any], per_class: pd.DataFrame, explained: Explained) -> None:
    """Write headline.tex and .csv, per_class.tex and .csv, and, where there are sanity checks, views.tex and .csv.

    Args:
        folder: of the tables.
        metrics: the content of metrics.json.
        per_class: the table of classes.
    """
    numbers = headline(metrics)
    write_table(_in_words(numbers), numbers, folder / "headline")
    write_table(_classes_in_words(per_class), per_class, folder / "per_class")
    if explained.views is not None:
        write_table(_views_in_words(explained.views), explained.views, folder / "views")


def headline(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """The numbers of an evaluation: number, value, low, high (95 %; missing without an interval), n, kind.

    kind: "share" (0..1), "difference" of two shares, or "number". After the official numbers come the scores by other
    label sets, and their paired difference to the official labels.
    """
    classes = metrics.get("classes", math.inf)
    told = [key for key in (*SHARES, *NUMBERS) if key in metrics and classes >= FEWEST_CLASSES.get(key, 1)]
    names = {**SHARES, **NUMBERS}
    rows = [_row(names[key], metrics, key, "share" if key in SHARES else "number") for key in told]
    for name, by in metrics.get("label_sets", {}).items():
        values = {"n": metrics["n"], **by}
        rows.append(_row(f"top-1 accuracy by {name}", values, "top1", "share"))
        rows.append(_row(f"{name} minus official labels", values, "difference", "difference"))
    return pd.DataFrame(rows)


def _row(words: str, values: Mapping[str, Any], key: str, kind: str) -> dict[str, Any]:
    bounds = {bound: values.get(f"{key}_{bound}") for bound in ("low", "high")}
    return {"number": words, "value": values[key], **bounds, "n": values["n"], "kind": kind}


def _in_words(numbers: pd.DataFrame) -> pd.DataFrame:
    """The headline with the unit of each number in its name: percent, points (with their sign), nats."""
    rows = []
    for row in numbers.to_dict("records"):
        kind, low, high = row["kind"], row["low"], row["high"]
        is_share, is_difference = kind == "share", kind == "difference"
        value = _points(row["value"]) if is_difference else _number(row["value"], is_share)
        interval = _signed(low, high) if is_difference else _interval(low, high, is_share)
        rows.append(
            {"": row["number"] + UNITS[kind], "value": value, "95 % interval": interval, "n": f"{row['n']}"}
        )
    return pd.DataFrame(rows)


def _classes_in_words(per_class: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "class": readable(str(row["class_name"])),
            "images": f"{row['n']}",
            "accuracy (%)": _number(row["accuracy"], True) if row["n"] else NONE,
            "95 % interval": _interval(row["accuracy_low"], row["accuracy_high"], True) if row["n"] else NONE,
            "precision (%)": _number(row["precision"], True),
            "F1 (%)": _number(row["f1"], True) if row["n"] else NONE,
            "training images": f"{row['train_images']}",
        }
        for row in per_class.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _views_in_words(views: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "shown": row["view"],
            "top-1 (%)": _number(row["top1"], True),
            "95 % interval": _interval(row["top1_low"], row["top1_high"], True),
            "difference (points)": _points(row["difference"]) if position else NONE,
            "its 95 % interval": _signed(row["difference_low"], row["difference_high"]) if position else NONE,
        }
        for position, row in enumerate(views.to_dict("records"))
    ]
    return pd.DataFrame(rows)


def _number(value: float | None, is_share: bool) -> str:
    if value is None or pd.isna(value):
        return NONE
    return f"{100 * value:.1f}" if is_share else f"{value:.3f}"


def _interval(low: float | None, high: float | None, is_share: bool) -> str:
    found = [_number(value, is_share) for value in (low, high)]
    return NONE if NONE in found else " to ".join(found)


def _signed(low: float, high: float) -> str:
    return f"{_points(low)} to {_points(high)}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
