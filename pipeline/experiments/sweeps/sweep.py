"""The verb `sweep`: trials side by side until there are so many, then their table, their figures and the best."""

import contextlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common import console, files, hardware, tables
from pipeline.common.errors import ConfigError, DataError
from pipeline.common.locks import Lock
from pipeline.config.load import completed, differences
from pipeline.data.prepare import prepare
from pipeline.experiments import worker_pool
from pipeline.experiments.sweeps import figures, results
from pipeline.experiments.sweeps.plan import SweepPlan, plans
from pipeline.experiments.sweeps.task import PREPARING, TrialTask
from pipeline.experiments.sweeps.trials import Trials

DEFINITION, DEFINING, SHOWING = "sweep.json", "sweep.lock", "results.lock"
POLL_S = 1.0
GRACE_S = 20.0
SHOWN = 20  # trials on the terminal


def sweep(
    path: Path, most: int | None, jobs: int | None, pruner: str | None, more: Sequence[str]
) -> dict[str, Any]:
    """Do one sweep, or the stages of a folder one after another; what is done already is not done again.

    Args:
        path: a sweep file, or a folder of them.
        most: trials of each sweep, whoever does them; None: run_cap, or the size of the grid.
        jobs: trials at once; None: one a GPU, or one a core.
        pruner: median, hyperband or none; None: as the file's early_terminate says.
        more: overrides of every trial.

    Raises:
        UserError: a file or a configuration is wrong, or a trial failed by what can be mended.
        Stopped: a signal came; the same command goes on.
    """
    for name, number in (("--trials", most), ("--jobs", jobs)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} {number}: has to be at least 1")
    stages = plans(path, more)
    for plan in stages:
        _most(plan, most)
    done = []
    for plan in stages:  # read anew: it may begin with what the stage before has found
        done.append(_one(SweepPlan(plan.path, plan.more), most, jobs, pruner, wait=plan is not stages[-1]))
    return done[0] if len(stages) == 1 else {"stages": done}


def _most(plan: SweepPlan, asked: int | None) -> int:
    """How many trials a sweep has in all."""
    if plan.sweep.method == "grid":
        size = len(plan.grid())
        return min(asked or plan.sweep.run_cap or size, size)
    most = asked or plan.sweep.run_cap
    if most is None:
        raise ConfigError(f"{plan.path}: --trials N says how many, or run_cap in the file")
    return most


def _one(
    plan: SweepPlan, asked: int | None, jobs: int | None, pruner: str | None, *, wait: bool
) -> dict[str, Any]:
    """wait: until the trials that others do have ended, too."""
    plan.check()
    turn = TrialTask(plan, pruner, _most(plan, asked))
    _define(plan, pruner)
    trials = Trials(plan, pruner)
    if len(trials.ended()) < turn.most:
        with contextlib.closing(Lock.hold(plan.folder / PREPARING)):
            prepare(plan.common)
        _work(trials, turn, jobs)
    # A process that is being stopped gives its trial back when it has saved it.
    until = math.inf if wait else time.monotonic() + GRACE_S
    while trials.running() and time.monotonic() < until:
        time.sleep(POLL_S)
        if trials.abandoned():
            _work(trials, turn, jobs)
    with contextlib.closing(Lock.hold(plan.folder / SHOWING)):
        return _show(trials)


def _define(plan: SweepPlan, pruner: str | None) -> None:
    """Write down what the sweep is, or see that it is still the same.

    Raises:
        ConfigError: the file, the base configuration or the overrides have changed since it began.
    """
    now, path = plan.definition(pruner), plan.folder / DEFINITION
    with contextlib.closing(Lock.hold(plan.folder / DEFINING)):
        if not path.is_file():
            files.write_json(path, now)
            return
        before = files.read_json(path)
    before["config"] = completed(before["config"])
    changed = [
        f"{key} {json.dumps(one)} -> {json.dumps(other)}"
        for key, one, other in differences(before, json.loads(json.dumps(now)))
    ]
    if changed:
        raise ConfigError(
            f"{plan.path}: {plan.folder} is of another sweep ({', '.join(changed)}); take it back, name this one "
            f"with run.name=NAME, or remove that folder"
        )


def _work(trials: Trials, turn: TrialTask, jobs: int | None) -> None:
    """Give workers turns until no trial is left to be taken.

    Raises:
        DataError: a trial failed by what the user can mend; it goes on when that is mended.
        Stopped: a signal came; the trials that were under way have saved themselves.
        RuntimeError: a trial ended by a bug, whose traceback is in it.
    """
    plan = turn.plan
    gpus = hardware.gpus() if plan.common.train.device != "cpu" else []
    missing, left = turn.most - len(trials.ended()), True
    jobs = min(jobs or len(gpus) or hardware.cores(), missing)
    with (
        console.bar(plan.name, turn.most, "trials", turn.most - missing) as bar,
        contextlib.closing(worker_pool.run_tasks(lambda: turn if left else None, jobs, gpus)) as ended,
    ):
        for _, outcome in ended:
            if outcome.status == "bug":
                raise RuntimeError(f"{plan.name}, in another process:\n{outcome.said}")
            if outcome.status == "failed":
                raise DataError(f"{plan.path}: {outcome.said}; when that is mended, the same command goes on")
            if outcome.status == "lost":
                console.warn(f"a worker is gone ({outcome.said}); another goes on with its trial")
            else:
                _say(plan, outcome.result)
            left = outcome.status == "lost" or outcome.result is not None
            bar.advance(len(trials.ended()) - bar.done)


def _say(plan: SweepPlan, result: dict[str, Any] | None) -> None:
    """What came of a trial."""
    if result is not None:
        value = "" if result["value"] is None else f"  {plan.sweep.metric.name} {result['value']:.4g}"
        why = f"  {result['why']}" if result["why"] else ""
        console.say(f"trial {result['number']}  {result['outcome']}{value}{why}")


def _show(trials: Trials) -> dict[str, Any]:
    """Write the sweep's tables, figures and best configuration, and say how far to trust it.

    Raises:
        DataError: no trial was completed.
    """
    plan, rows = trials.plan, results.table(trials)
    tables.write_csv(rows, plan.folder / "trials.csv")
    _show_table(plan, rows)
    counts = results.counts(rows)
    if under_way := counts.get("running"):
        console.say(f"{under_way} trials are under way elsewhere; whoever ends last writes all of this again")
    best = results.best(plan, rows)
    if best is None:
        words = ", ".join(f"{count} {state}" for state, count in counts.items())
        raise DataError(
            f"{plan.path}: none of its trials was completed ({words}); {plan.folder}/trials.csv says why"
        )
    config = plan.config(best["number"], {key: best[key] for key in plan.searched})
    trust = results.trust(plan, rows, best, config)
    note = results.in_words(plan, counts, best, trust)
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
    """Draw the figures; their names."""
    figures.history(plan.folder / "history.png", plan, rows)
    figures.parallel_coordinates(plan.folder / "parallel_coordinates.png", plan, rows)
    drawn = ["history.png", "parallel_coordinates.png"]
    if shares is None:
        needed = results.needed_for_importance(plan)
        console.say(f"importance.png is not drawn: it needs {needed} complete trials of different value")
        return drawn
    figures.importance(plan.folder / "importance.png", plan, shares, complete)
    return [*drawn, "importance.png"]


def _show_table(plan: SweepPlan, rows: pd.DataFrame) -> None:
    """The trials, the best first."""
    columns = ["number", "state", plan.metric, "epoch", "epochs", "seconds", *plan.searched]
    shown = [[_cell(row[name]) for name in columns] for row in results.ranked(plan, rows)[:SHOWN]]
    console.show_table(f"{plan.name}: {len(rows)} trials", columns, shown)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)
