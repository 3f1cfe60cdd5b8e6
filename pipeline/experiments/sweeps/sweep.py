"""The verb `sweep`: run trials up to a limit, then write their table, their figures and the best configuration."""

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common import console, files, tables
from pipeline.common.errors import ConfigError, DataError
from pipeline.common.locks import Lock
from pipeline.data.prepare import prepare
from pipeline.experiments import worker_pool
from pipeline.experiments.sweeps import figures, results
from pipeline.experiments.sweeps.definition import fix_definition, fix_samples
from pipeline.experiments.sweeps.plan import SweepPlan, load_plans
from pipeline.experiments.sweeps.task import TrialTask
from pipeline.experiments.sweeps.trials import Trials
from pipeline.experiments.worker_pool import Outcome

SHOWING = "results.lock"
POLL_S = 1.0
GRACE_S = 20.0
SHOWN = 20  # trials on the terminal
MOST_LOSSES = 3  # processes a job, in a row, that end before they claim a trial


def sweep(
    path: Path, limit: int | None, jobs: int | None, pruner: str | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """Do one sweep, or the stages of a folder one after another; finished trials are not repeated.

    Args:
        path: a sweep file, or a folder of them.
        limit: trials of each sweep, whoever runs them; None: run_cap, or the size of the grid.
        jobs: trials at once; None: one a GPU, or one a core.
        pruner: median, hyperband or none; None: as the file's early_terminate says.
        overrides: of every trial.

    Raises:
        UserError: a file or a configuration is wrong, or a trial failed by a mistake that can be fixed.
        Stopped: a signal came; the same command resumes.
    """
    for name, number in (("--trials", limit), ("--jobs", jobs)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} {number}: has to be at least 1")
    stages = load_plans(path, overrides)
    for stage in stages:
        _trial_limit(stage, limit)
    summaries = []
    for stage in stages:
        plan = SweepPlan(
            stage.path, stage.overrides
        )  # read again: the previous stage has written its best by now
        is_last = stage is stages[-1]
        summaries.append(_do_sweep(plan, limit, jobs, pruner, until_others_end=not is_last))
    return summaries[0] if len(stages) == 1 else {"stages": summaries}


def _trial_limit(plan: SweepPlan, asked: int | None) -> int:
    """The number of trials of a sweep, at most the size of a grid."""
    if plan.sweep.method == "grid":
        size = len(plan.grid())
        return min(asked or plan.sweep.run_cap or size, size)
    limit = asked or plan.sweep.run_cap
    if limit is None:
        raise ConfigError(f"{plan.path}: set the number of trials with --trials N, or run_cap in the file")
    return limit


def _do_sweep(
    plan: SweepPlan, asked: int | None, jobs: int | None, pruner: str | None, *, until_others_end: bool
) -> dict[str, Any]:
    """Run what may be claimed, wait for the trials of other processes, and write the results.

    Args:
        until_others_end: wait for these until they end; else `GRACE_S`, for those that are stopped just now.
    """
    plan.check()
    task = TrialTask(plan, pruner, _trial_limit(plan, asked))
    fix_definition(plan, pruner)
    trials = Trials(plan, pruner)
    if trials.running() or trials.claimable(task.limit):
        data = prepare(plan.common)
        if plan.metric.startswith("val") and not data.rows("val"):
            raise ConfigError(
                f"{plan.path}: metric.name: {plan.metric} needs validation, and no image of the data set validates; "
                "hold some out with data.val_fraction"
            )
        fix_samples(plan, data)
    _run_trials(trials, task, jobs)
    # A process that is asked to stop releases its trial once it has saved it.
    until = math.inf if until_others_end else time.monotonic() + GRACE_S
    while trials.running() and time.monotonic() < until:
        time.sleep(POLL_S)
        _run_trials(trials, task, jobs)
    with contextlib.closing(Lock.hold(plan.folder / SHOWING)):
        return _write_results(trials)


def _run_trials(trials: Trials, task: TrialTask, jobs: int | None) -> None:
    """Run trials in worker processes until none is left to claim.

    Raises:
        DataError: a trial failed by a mistake that can be fixed; then the same command resumes with it. Or processes
            end before they claim one.
        Stopped: a signal came; the running trials have saved their state.
        RuntimeError: a bug ended a trial; the message holds the traceback.
    """
    plan, claimable, any_left = task.plan, trials.claimable(task.limit), True
    if not claimable:
        return
    places = worker_pool.places(jobs, [plan.common])
    places = replace(places, jobs=min(places.jobs, claimable))
    losses = _Losses(trials, places.jobs)
    total = max(task.limit, len(trials.all()))  # more, where an earlier command had a larger limit
    with (
        console.bar(plan.name, total, "trials", len(trials.finished())) as bar,
        contextlib.closing(worker_pool.run_tasks(lambda: task if any_left else None, places)) as ended,
    ):
        for _, outcome in ended:
            if outcome.status == "bug":
                raise RuntimeError(f"{plan.name}, in another process:\n{outcome.message}")
            if outcome.status == "failed":
                raise DataError(
                    f"{plan.path}: {outcome.message}; once that is fixed, the same command resumes"
                )
            losses.count(outcome)
            if outcome.status == "lost":
                console.warn(f"a worker is gone ({outcome.message}); another takes its place")
            else:
                _print_result(plan, outcome.result)
            any_left = outcome.status == "lost" or outcome.result is not None
            bar.advance(len(trials.finished()) - bar.done)


class _Losses:
    """Counts the processes in a row that end before they claim a trial; `Trials` counts those that end later."""

    def __init__(self, trials: Trials, jobs: int) -> None:
        self._trials, self._most = trials, MOST_LOSSES * jobs
        self._in_a_row, self._progress = 0, trials.progress()

    def count(self, outcome: Outcome) -> None:
        """Count an outcome.

        Raises:
            DataError: too many processes in a row were lost, and meanwhile no trial began or ended.
        """
        before, self._progress = self._progress, self._trials.progress()
        if outcome.status != "lost" or self._progress != before:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row >= self._most:
            raise DataError(
                f"{self._trials.plan.path}: {self._in_a_row} worker processes in a row ended before they began a "
                f"trial ({outcome.message}): too little memory? Give fewer --jobs; the same command resumes"
            )


def _print_result(plan: SweepPlan, result: dict[str, Any] | None) -> None:
    """Print the result of a trial; None: there was none left."""
    if result is not None:
        value = "" if result["value"] is None else f"  {plan.sweep.metric.name} {result['value']:.4g}"
        why = f"  {result['why']}" if result["why"] else ""
        console.say(f"trial {result['number']}  {result['outcome']}{value}{why}")


def _write_results(trials: Trials) -> dict[str, Any]:
    """Write the sweep's tables, figures and best configuration, and print how far to trust it.

    Raises:
        DataError: no trial was completed.
    """
    plan, rows = trials.plan, results.table(trials)
    tables.write_csv(rows, plan.folder / "trials.csv")
    _show_table(plan, rows)
    counts = results.counts(rows)
    if running := counts.get("running"):
        console.say(f"{running} trials are running elsewhere; whichever ends last writes all of this again")
    if abandoned := counts.get("abandoned"):
        console.say(
            f"{abandoned} trials are abandoned: their processes are gone; the same command resumes with them"
        )
    best = results.best(plan, rows)
    if best is None:
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        raise DataError(
            f"{plan.path}: none of its trials was completed ({states}); {plan.folder}/trials.csv says why"
        )
    config = plan.config(best["number"], {key: best[key] for key in plan.searched})
    trust = results.trust(plan, rows, best, config)
    note = results.describe_best(plan, counts, best, trust)
    shares = results.importance(trials)
    pictures = _draw(plan, rows, shares, counts["complete"])
    path = results.write_best(plan, best, config, note)
    console.say(
        f"best   {note[0]}\nnote   {note[1]}\nsweep  {path}, trials.csv, results.json, {', '.join(pictures)}"
    )
    about = {
        "sweep": plan.name,
        "file": str(plan.path),
        "folder": str(plan.folder),
        "metric": plan.sweep.metric.name,
        "goal": plan.sweep.metric.goal,
        "trials": len(rows),
        "states": counts,
        "best": {key: best[key] for key in ("number", plan.metric, "epoch", *plan.searched)},
        "config": str(path),
        **trust,
        "importance": shares,
        "test_split": "not read",
    }
    files.write_json(plan.folder / "results.json", about)
    return about


def _draw(plan: SweepPlan, rows: pd.DataFrame, shares: dict[str, float] | None, complete: int) -> list[str]:
    """Draw the figures; return their names."""
    figures.history(plan.folder / "history.png", plan, rows)
    figures.parallel_coordinates(plan.folder / "parallel_coordinates.png", plan, rows)
    drawn = ["history.png", "parallel_coordinates.png"]
    if shares is None:
        needed = results.trials_for_importance(plan)
        console.say(f"importance.png is not drawn: it needs {needed} complete trials of different value")
        return drawn
    figures.importance(plan.folder / "importance.png", plan, shares, complete)
    return [*drawn, "importance.png"]


def _show_table(plan: SweepPlan, rows: pd.DataFrame) -> None:
    """Print the trials, the best first."""
    columns = ["number", "state", plan.metric, "epoch", "epochs", "seconds", *plan.searched]
    shown = [[_cell(row[name]) for name in columns] for row in results.ranked(plan, rows)[:SHOWN]]
    console.show_table(f"{plan.name}: {len(rows)} trials", columns, shown)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)
