"""Runs become rows, rows become a table with means over the seeds and their intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from pipeline.evaluation.statistics import LEVEL
from pipeline.experiments.studies.plan import Member
from pipeline.runs import predictions
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import Log

# What is measured of a run, as columns of runs.csv:
# test_top1: of the checkpoint that was the best on validation. val_top1, val_loss: its validation.
# train_error: 1 - top-1 of the last epoch, over its training steps, as He et al. 2015 draw it.
MEASURES = ("test_top1", "val_top1", "train_error")


def log(member: Member) -> Log:
    """The records of a run."""
    return RunDirectory(member.config.run_dir).read_log()


def row(member: Member) -> dict[str, Any]:
    """What a finished run has come to, as a row of runs.csv."""
    config = member.config
    logged = log(member)
    chosen, last = logged.best(), logged.epochs()[-1]
    assert chosen is not None, "a study validates"
    tested = predictions.read_metrics(RunDirectory(config.run_dir).evaluation("test"))
    return {
        "condition": member.condition,
        "arm": member.arm,
        "seed": member.seed,
        "lr": (config.optim.resolved_phases[-1].lr),
        "test_top1": tested["top1"],
        "val_top1": chosen["val_top1"],
        "val_loss": chosen["val_loss"],
        "best_step": chosen["step"],
        "steps": last["step"],
        "train_error": 1 - last["train_top1"],
        "train_loss": last["train_loss"],
        "seconds": last["seconds"],
        "cpu_seconds": last["cpu_seconds"],
        "test_images": tested["n"],
        "test_reads": tested["test_reads"],
        "run": str(config.run_dir),
    }


def of_mean(values: npt.ArrayLike) -> dict[str, float | int | None]:
    """n, mean, sd, and the 95 % interval of the mean by Student's t; of one value, the mean alone."""
    given = np.asarray(values, np.float64)
    n, mean = len(given), float(given.mean())
    if n == 1:
        return {"n": 1, "mean": mean, "sd": None, "low": None, "high": None}
    sd = float(given.std(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / np.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def table(runs: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """A row for each condition, arm and measure, in their order: n, mean, sd, low, high."""
    return pd.DataFrame(
        {"condition": condition, "arm": arm, "measure": measure, **of_mean(group[measure])}
        for (condition, arm), group in runs.groupby(["condition", "arm"], sort=False)
        for measure in measures
    )


def differences(runs: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """The same of each arm minus the first arm of its condition, seed by seed."""
    rows = []
    for condition, group in runs.groupby("condition", sort=False):
        by_arm = {str(arm): part.set_index("seed") for arm, part in group.groupby("arm", sort=False)}
        first, *others = by_arm
        rows += [
            {
                "condition": condition,
                "arm": f"{arm} - {first}",
                "measure": measure,
                **of_mean(by_arm[arm][measure] - by_arm[first][measure]),
            }
            for arm in others
            for measure in measures
        ]
    return pd.DataFrame(rows, columns=["condition", "arm", "measure", "n", "mean", "sd", "low", "high"])


def markdown(found: pd.DataFrame) -> str:
    """A table as Markdown: a line an arm, a column a measure, each `mean +- sd (low to high)`."""
    if found.empty:
        return ""
    measures = list(dict.fromkeys(found["measure"]))
    with_condition = found["condition"].ne("").any()
    head = [
        *(["condition"] if with_condition else []),
        "arm",
        "n",
        *(name.replace("_", " ") for name in measures),
    ]
    lines = [head, ["---"] * len(head)]
    for (condition, arm), group in found.groupby(["condition", "arm"], sort=False):
        cells = {entry["measure"]: words(entry) for entry in group.to_dict("records")}
        own = [str(condition), str(arm)] if with_condition else [str(arm)]
        lines.append([*own, str(group["n"].iloc[0]), *(cells[name] for name in measures)])
    return rows(lines)


def rows(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table; the second one is its rule."""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def words(entry: dict[Any, Any]) -> str:
    """`0.912 ± 0.010 (0.887 to 0.937)`; of one run, the value alone."""
    mean, sd, low, high = (entry[key] for key in ("mean", "sd", "low", "high"))
    if sd is None or np.isnan(sd):
        return figure(mean)
    return f"{figure(mean)} ± {figure(sd)} ({figure(low)} to {figure(high)})"


def figure(value: float) -> str:
    """Three decimals, or a power of ten where they would show nothing; 0 is nothing but 0."""
    if value == 0:
        return "0"
    return f"{value:.3f}" if 0.0005 <= abs(value) < 1000 else f"{value:.1e}"
