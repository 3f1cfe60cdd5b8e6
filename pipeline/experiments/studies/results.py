"""The finished runs of a study, read again: rows, tables with means over the seeds, and trained networks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from pipeline.data import prepare
from pipeline.data.loader import Images
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation.statistics import LEVEL
from pipeline.experiments.studies.plan import Member
from pipeline.inference import load_model
from pipeline.models.classifier import Classifier
from pipeline.runs import predictions
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Log

# The measures of a run, columns of runs.csv:
# test_top1: of the checkpoint that validation chose. val_top1, val_loss: its validation.
# train_error: 1 - top-1 of the last epoch, over its training steps, as He et al. 2015 draw it.
MEASURES = ("test_top1", "val_top1", "train_error")


def read_log(member: Member) -> Log:
    """The records of a run."""
    return RunDirectory(member.config.run_dir).read_log()


def load_network(member: Member) -> Classifier:
    """A run's best network on the CPU, in evaluation mode."""
    samples = prepare.load(member.config).samples
    path = load_model.checkpoint_path(member.config)
    ranks = Ranks.single(torch.device("cpu"))
    return load_model.load_model(member.config, samples, path, ranks, as_trained=True).model


def validation_images(member: Member) -> tuple[Tensor, Tensor]:
    """A run's validation images, uint8 [n, 3, H, W], and their labels, int64 [n]."""
    data = prepare.load(member.config)
    images = Images(data.store, data.labels, CentreCrop(member.config.data))
    batch = images.__getitems__([(0, row) for row in data.rows("val")])
    return batch.image.permute(0, 3, 1, 2).contiguous(), batch.label


def run_row(member: Member) -> dict[str, Any]:
    """The results of a finished run: a row of runs.csv."""
    config, log = member.config, read_log(member)
    best, last = log.best(), log.epochs()[-1]
    assert best is not None, "a study validates"
    test = predictions.read_metrics(RunDirectory(config.run_dir).evaluation("test"))
    return {
        "condition": member.condition,
        "arm": member.arm,
        "seed": member.seed,
        "lr": config.optim.resolved_phases[-1].lr,
        "test_top1": test["top1"],
        "val_top1": best["val_top1"],
        "val_loss": best["val_loss"],
        "best_step": best["step"],
        "steps": last["step"],
        "train_error": 1 - last["train_top1"],
        "train_loss": last["train_loss"],
        "seconds": last["seconds"],
        "cpu_seconds": last["cpu_seconds"],
        "test_images": test["n"],
        "test_reads": test["test_reads"],
        "run": str(config.run_dir),
    }


def mean_interval(values: npt.ArrayLike) -> dict[str, float | int | None]:
    """n, mean, sd, and the 95 % interval of the mean by Student's t; None for all but n and mean of one value."""
    sample = np.asarray(values, np.float64)
    n, mean = len(sample), float(sample.mean())
    if n == 1:
        return {"n": 1, "mean": mean, "sd": None, "low": None, "high": None}
    sd = float(sample.std(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / np.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def summary_table(runs: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """A row for each condition, arm and measure, in that order: n, mean, sd, low, high."""
    return pd.DataFrame(
        {"condition": condition, "arm": arm, "measure": measure, **mean_interval(group[measure])}
        for (condition, arm), group in runs.groupby(["condition", "arm"], sort=False)
        for measure in measures
    )


def differences(runs: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """As `summary_table`, for each arm minus the first arm of its condition, seed by seed."""
    rows = []
    for condition, group in runs.groupby("condition", sort=False):
        by_arm = {str(arm): part.set_index("seed") for arm, part in group.groupby("arm", sort=False)}
        first, *others = by_arm
        rows += [
            {
                "condition": condition,
                "arm": f"{arm} - {first}",
                "measure": measure,
                **mean_interval(by_arm[arm][measure] - by_arm[first][measure]),
            }
            for arm in others
            for measure in measures
        ]
    return pd.DataFrame(rows, columns=["condition", "arm", "measure", "n", "mean", "sd", "low", "high"])


def markdown(summary: pd.DataFrame) -> str:
    """A summary as Markdown: a line an arm, a column a measure, each `mean +- sd (low to high)`."""
    if summary.empty:
        return ""
    measures = list(dict.fromkeys(summary["measure"]))
    with_condition = summary["condition"].ne("").any()
    head = [
        *(["condition"] if with_condition else []),
        "arm",
        "n",
        *(name.replace("_", " ") for name in measures),
    ]
    lines = [head, ["---"] * len(head)]
    for (condition, arm), group in summary.groupby(["condition", "arm"], sort=False):
        cells = {entry["measure"]: format_mean(entry) for entry in group.to_dict("records")}
        names = [str(condition), str(arm)] if with_condition else [str(arm)]
        lines.append([*names, str(group["n"].iloc[0]), *(cells[name] for name in measures)])
    return markdown_table(lines)


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table; the second line is the rule below the head."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def format_mean(entry: dict[Any, Any]) -> str:
    """`0.912 ± 0.010 (0.887 to 0.937)`; for one run, the value alone."""
    mean, sd, low, high = (entry[key] for key in ("mean", "sd", "low", "high"))
    if sd is None or np.isnan(sd):
        return format_number(mean)
    return f"{format_number(mean)} ± {format_number(sd)} ({format_number(low)} to {format_number(high)})"


def format_number(value: float) -> str:
    """Three decimals, or a power of ten where they would all be 0; only 0 itself is `0`."""
    if value == 0:
        return "0"
    return f"{value:.3f}" if 0.0005 <= abs(value) < 1000 else f"{value:.1e}"
