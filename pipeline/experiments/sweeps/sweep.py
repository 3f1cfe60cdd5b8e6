"""The verb `sweep`: run trials up to a limit, then write their table, their figures and the best configuration."""

import contextlib
import json
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
from pipeline.config.load import completed, differences
from pipeline.data.prepare import prepare
from pipeline.experiments import worker_pool
from pipeline.experiments.sweeps import figures, results
from pipeline.experiments.sweeps.plan import SweepPlan, load_plans
from pipeline.experiments.sweeps.task import TrialTask
from pipeline.experiments.sweeps.trials import Trials

DEFINITION, DEFINING, SHOWING = "sweep.json", "sweep.lock", "results.lock"
POLL_S = 1.0
GRACE_S = 20.0
SHOWN = 20  # trials on the terminal


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
        UserError: a file or a configuration is wrong, or a trial failed by a mistake that can be mended.
        Stopped: a signal came; the same command goes on.
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
        summaries.append(_do_sweep(plan, limit, jobs, pruner, wait=stage is not stages[-1]))
    return summaries[0] if len(stages) == 1 else {"stages": summaries}


def _trial_limit(plan: SweepPlan, asked: int | None) -> int:
    """The number of trials of a sweep, at most the size of a grid."""
    if plan.sweep.method == "grid":
        size = len(plan.grid())
        return min(asked or plan.sweep.run_cap or size, size)
    limit = asked or plan.sweep.run_cap
    if limit is None:
        raise ConfigError(f"{plan.path}: --trials N says how many, or run_cap in the file")
    return limit


def _do_sweep(
    plan: SweepPlan, asked: int | None, jobs: int | None, pruner: str | None, *, wait: bool
) -> dict[str, Any]:
    """wait: also for the trials that other processes run."""
    plan.check()
    task = TrialTask(plan, pruner, _trial_limit(plan, asked))
    fix_definition(plan, pruner)
    trials = Trials(plan, pruner)
    if len(trials.finished()) < task.limit:
        prepare(plan.common)
        _run_trials(trials, task, jobs)
    # A process that is asked to stop releases its trial once it has saved it.
    until = math.inf if wait else time.monotonic() + GRACE_S
    while trials.running() and time.monotonic() < until:
        time.sleep(POLL_S)
        if trials.any_abandoned():
            _run_trials(trials, task, jobs)
    with contextlib.closing(Lock.hold(plan.folder / SHOWING)):
        return _write_results(trials)


def fix_definition(plan: SweepPlan, pruner: str | None) -> None:
    """Write down the definition of the sweep; if it has begun, check that it is unchanged.

    Raises:
        ConfigError: the file, the base configuration or the overrides have changed since it began.
    """
    definition, path = plan.definition(pruner), plan.folder / DEFINITION
    with contextlib.closing(Lock.hold(plan.folder / DEFINING)):
        if not path.is_file():
            files.write_json(path, definition)
            return
        before = files.read_json(path, dict[str, Any])
    if not isinstance(before.get("config"), dict):
        raise DataError(f"{path}: damaged (config: no configuration); {files.RESTORE}")
    before["config"] = completed(before["config"])
    changed = [
        f"{key} {json.dumps(old)} -> {json.dumps(new)}"
        for key, old, new in differences(before, json.loads(json.dumps(definition)))
    ]
    if changed:
        raise ConfigError(
            f"{plan.path}: {plan.folder} is of another sweep ({', '.join(changed)}); take it back, name this one "
            f"with run.name=NAME, or remove that folder"
        )


def _run_trials(trials: Trials, task: TrialTask, jobs: int | None) -> None:
    """Run trials in worker processes until none is left to claim.

    Raises:
        DataError: a trial failed by a mistake that can be mended; then the same command goes on with it.
        Stopped: a signal came; the running trials have saved their state.
        RuntimeError: a bug ended a trial; the message holds the traceback.
    """
    plan = task.plan
    missing, any_left = task.limit - len(trials.finished()), True
    places = worker_pool.places(jobs, [plan.common])
    places = replace(places, jobs=min(places.jobs, missing))
    with (
        console.bar(plan.name, task.limit, "trials", task.limit - missing) as bar,
        contextlib.closing(worker_pool.run_tasks(lambda: task if any_left else None, places)) as ended,
    ):
        for _, outcome in ended:
            if outcome.status == "bug":
                raise RuntimeError(f"{plan.name}, in another process:\n{outcome.message}")
            if outcome.status == "failed":
                raise DataError(
                    f"{plan.path}: {outcome.message}; when that is mended, the same command goes on"
                )
            if outcome.status == "lost":
                console.warn(f"a worker is gone ({outcome.message}); another goes on with its trial")
            else:
                _print_result(plan, outcome.result)
            any_left = outcome.status == "lost" or outcome.result is not None
            bar.advance(len(trials.finished()) - bar.done)


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
        console.say(f"{running} trials are under way elsewhere; whoever ends last writes all of this again")
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
