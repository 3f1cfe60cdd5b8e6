"""The figures of studies, from the logs of their runs: a line is the mean over the seeds, a band their range."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.experiments.studies import results
from pipeline.experiments.studies.plan import Member
from pipeline.plots.style import STYLE, save

SMOOTHING_STEPS = 5  # span of the exponential mean of training losses
FEW_SEEDS_ALPHA = 0.18


def curves(path: Path, title: str, members: Sequence[Member]) -> None:
    """Training and validation loss, and validation top-1, by step: a column a condition."""
    conditions = list(dict.fromkeys(member.condition for member in members))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(6.5, 3 * len(conditions)), 5.2), layout="constrained")
        panels = figure.subplots(2, len(conditions), sharex="col", sharey="row", squeeze=False)
        for column, condition in enumerate(conditions):
            of_condition = [member for member in members if member.condition == condition]
            losses, accuracies = panels[0, column], panels[1, column]
            for colour, (arm, runs) in zip(
                _colours(of_condition), _by_arm(of_condition).items(), strict=True
            ):
                _line(losses, smoothed_training(runs, "loss"), colour, None, "--")
                _line(losses, validation(runs, "val_loss"), colour, arm)
                _line(accuracies, validation(runs, "val_top1"), colour, arm)
            losses.set_title(condition)
            losses.set_ylim(bottom=0)
            accuracies.set_xlabel("step")
            accuracies.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[0, 0].set_ylabel("loss (nats)\ntraining dashed, validation solid")
        panels[1, 0].set_ylabel("validation top-1")
        _legend(panels[1, -1], loc="lower right")
        figure.suptitle(title)
        save(figure, path)


def depth(path: Path, title: str, members: Sequence[Member], runs: pd.DataFrame) -> None:
    """Training error by epoch, a panel an arm and a line a condition; in the last panel, that of the last epoch."""
    arms = _by_arm(members)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * (len(arms) + 1), 3.4), layout="constrained")
        *panels, last = figure.subplots(1, len(arms) + 1, sharey=True)
        for axes, (arm, of_arm) in zip(panels, arms.items(), strict=True):
            conditions = list(dict.fromkeys(member.condition for member in of_arm))
            shades = mpl.colormaps["viridis_r"]
            for number, condition in enumerate(conditions):
                colour = shades(0.15 + 0.75 * number / max(1, len(conditions) - 1))
                chosen = [member for member in of_arm if member.condition == condition]
                _line(axes, _spread(_epochs(member) for member in chosen), colour, condition)
            axes.set(title=arm, xlabel="epoch")
            _legend(axes, loc="upper right")
        _against_depth(last, runs)
        panels[0].set_ylabel("training error")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[0].set_ylim(bottom=-0.02)  # a line at 0 is seen
        figure.suptitle(title)
        save(figure, path)


def optimizers(path: Path, title: str, members: Sequence[Member]) -> None:
    """Training loss by step, and by seconds of one core."""
    arms = _by_arm(members)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        by_step, by_second = figure.subplots(1, 2, sharey=True)
        for colour, (arm, runs) in zip(_colours(members), arms.items(), strict=True):
            losses = smoothed_training(runs, "loss")
            _line(by_step, losses, colour, arm)
            _line(by_second, losses.set_axis(core_seconds(runs)), colour, arm)
        if by_step.lines:
            by_step.set(xscale="log", yscale="log")
        by_step.set(xlabel="step", ylabel="training loss (nats), smoothed")
        by_second.set(xlabel="seconds of one core, validation included")
        _legend(by_second, loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.suptitle(title)
        save(figure, path)


def _by_arm(members: Sequence[Member]) -> dict[str, list[Member]]:
    by_arm: dict[str, list[Member]] = {}
    for member in members:
        by_arm.setdefault(member.arm, []).append(member)
    return by_arm


def _colours(members: Sequence[Member]) -> list[str]:
    return [f"C{number}" for number in range(len(_by_arm(members)))]


def _line(axes: Axes, spread: pd.DataFrame, colour: Any, label: str | None, style: str = "-") -> None:
    """A line with its band; nothing where there is no value, as of steps where a run logs none."""
    if spread.empty:
        return
    axes.plot(spread.index, spread["mean"], style, color=colour, label=label, linewidth=1.4)
    axes.fill_between(
        spread.index, spread["min"], spread["max"], color=colour, alpha=FEW_SEEDS_ALPHA, linewidth=0
    )


def _legend(axes: Axes, **where: Any) -> None:
    """The legend of the lines that are there."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**where)


def _spread(runs: Any) -> pd.DataFrame:
    """Mean, min and max over the seeds, where all of them have a value."""
    seeds = pd.concat(list(runs), axis=1).dropna()
    if seeds.empty:
        return pd.DataFrame(columns=["mean", "min", "max"], dtype=float)
    spread: pd.DataFrame = seeds.agg(["mean", "min", "max"], axis=1)
    return spread


def _column(member: Member, kind: str, name: str) -> "pd.Series[float]":
    """A value of the log's records of one kind, by step."""
    records = [record for record in results.read_log(member) if record["kind"] == kind]
    return pd.Series({record["step"]: record[name] for record in records}, dtype=float)


def smoothed_training(members: Sequence[Member], name: str) -> pd.DataFrame:
    """Mean, min and max of a value of the training steps, smoothed in each run (a bias-corrected exponential mean)."""
    series = (_column(member, "step", name) for member in members)
    return _spread(values.ewm(span=SMOOTHING_STEPS, adjust=True).mean() for values in series)


def validation(members: Sequence[Member], name: str) -> pd.DataFrame:
    """Mean, min and max of a value of validation, within epochs and at their ends."""

    def by_step(member: Member) -> "pd.Series[float]":
        records = [record for record in results.read_log(member) if record.get(name) is not None]
        return pd.Series({record["step"]: record[name] for record in records}, dtype=float)

    return _spread(map(by_step, members))


def core_seconds(members: Sequence[Member]) -> "pd.Series[float]":
    """Seconds of one core by logged step, the mean over the seeds."""
    return _spread(_column(member, "step", "cpu_seconds") for member in members)["mean"]


def _epochs(member: Member) -> "pd.Series[float]":
    """Training error by epoch."""
    records = [record for record in results.read_log(member) if record["kind"] == "epoch"]
    return pd.Series({record["epoch"]: 1 - record["train_top1"] for record in records}, dtype=float)


def _against_depth(axes: Axes, runs: pd.DataFrame) -> None:
    conditions = list(dict.fromkeys(runs["condition"]))
    for number, (arm, group) in enumerate(runs.groupby("arm", sort=False)):
        places = [conditions.index(condition) + 0.08 * (number - 0.5) for condition in group["condition"]]
        axes.plot(places, group["train_error"], "o", color=f"C{number}", markersize=3, alpha=0.5)
        means = group.groupby("condition", sort=False)["train_error"].mean()
        axes.plot([conditions.index(str(c)) for c in means.index], means, color=f"C{number}", label=str(arm))
    axes.set(title="last epoch", xticks=range(len(conditions)), xticklabels=conditions)
    _legend(axes, loc="best")
