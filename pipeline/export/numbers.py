"""What a run's evaluations of the exported checkpoint have measured, with 95 % intervals: for model card and server."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from pipeline.common import tables
from pipeline.config.schema import Config
from pipeline.runs import predictions
from pipeline.runs.directory import RunDirectory

SPLITS = "test", "val"
NAMES = "top1", "top5", "per_class_mean", "nll"


def measured(config: Config, checkpoint_sha256: str) -> list[dict[str, Any]]:
    """An entry for each split and label set, in plain types.

    split; labels, the name of a label set, None of the data's own; n images; protocol, whether a reading of test was
    confirmatory or exploratory, None of an earlier version and of validation; and of each number that has an interval
    its value, low and high.
    """
    return [
        entry
        for split in SPLITS
        if (metrics := _metrics(config, split, checkpoint_sha256)) is not None
        for entry in _entries(split, metrics)
    ]


def per_class(config: Config, checkpoint_sha256: str) -> tuple[str, pd.DataFrame] | None:
    """The first split that was evaluated, and its per_class.csv; None where none was."""
    for split in SPLITS:
        path = RunDirectory(config.run_dir).evaluation(split).table("per_class")
        if _metrics(config, split, checkpoint_sha256) is not None and path.is_file():
            return split, tables.read_csv(path, {"class_name": str}, predictions.AGAIN)
    return None


def _metrics(config: Config, split: str, checkpoint_sha256: str) -> dict[str, Any] | None:
    """The `metrics.json` of a split; None where it is of another checkpoint, other views, or missing."""
    folder = RunDirectory(config.run_dir).evaluation(split)
    if not folder.metrics_file.is_file():
        return None
    metrics = predictions.read_metrics(folder)
    of = metrics.get("checkpoint_sha256"), predictions.views(metrics)
    return metrics if of == (checkpoint_sha256, config.views) else None


def _entries(split: str, metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    protocol = metrics.get("protocol", {}).get("status")
    for labels, numbers in [(None, metrics), *metrics.get("label_sets", {}).items()]:
        yield {
            "split": split,
            "labels": labels,
            "n": numbers["n"],
            "protocol": protocol,
            **{
                name: {"value": numbers[name], "low": numbers[f"{name}_low"], "high": numbers[f"{name}_high"]}
                for name in NAMES
                if f"{name}_low" in numbers
            },
        }
