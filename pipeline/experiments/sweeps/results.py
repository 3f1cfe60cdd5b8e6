"""The results of a sweep: a table of its trials, the best as a configuration file, and how far to trust it."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.config.load import dump_departures, load_config, validate_tree
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.evaluation.statistics import wilson
from pipeline.experiments.sweeps.plan import BEST, SweepPlan
from pipeline.experiments.sweeps.trials import Trials
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import best_record

HEADER_WIDTH = 108
IMPORTANCE_NEEDS = 10  # complete trials at least, and two a parameter


def epochs(plan: SweepPlan, number: int) -> list[dict[str, Any]]:
    """The records of a trial's epochs."""
    return RunDirectory(plan.run_dir(number)).read_log().epochs()


def value(plan: SweepPlan, number: int) -> float | None:
    """A trial's value: its best over the epochs, as W&B's summary has it; None without a finite one."""
    return _best_of(plan, epochs(plan, number))


def _best_of(plan: SweepPlan, records: Sequence[dict[str, Any]]) -> float | None:
    values = [record[plan.metric] for record in records]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return (max if plan.maximised else min)(finite, default=None)


def table(trials: Trials) -> pd.DataFrame:
    """A row a trial, by number: state, value and its epoch, epochs, seconds, parameters, reason of a failure."""
    abandoned = {trial.number for trial in trials.abandoned()}
    # As objects: 0 and 0.1 in one column would become 0.0 and 0.1, and a command line with 0.0 is another one.
    rows = pd.DataFrame(
        [
            _row(trials, trial, "abandoned" if trial.number in abandoned else "running")
            for trial in trials.all()
        ],
        dtype=object,
    )
    return rows.astype({"number": int, trials.plan.metric: float, "epochs": int, "seconds": float})


def _row(trials: Trials, trial: FrozenTrial, unfinished: str) -> dict[str, Any]:
    """The row of a trial; unfinished: its state, if it has no outcome."""
    plan, why = trials.plan, trial.user_attrs.get("why")
    try:
        records = epochs(plan, trial.number)
        best = _best_of(plan, records)
    except DataError as error:  # of one trial; the sweep knows its value
        records, best, why = [], trial.value, str(error)
    reached = [record for record in records if best is not None and record[plan.metric] == best]
    best_epoch = best_record(reached) or next(iter(reached), None)  # of equals, that of best.pt
    state = trial.user_attrs.get("outcome", "") if trial.state.is_finished() else unfinished
    return {
        "number": trial.number,
        "state": state,
        plan.metric: best,
        "epoch": best_epoch and best_epoch["epoch"],
        "epochs": len(records),
        "seconds": records[-1]["seconds"] if records else 0.0,
        **trials.values(trial),
        "processes": len(trial.user_attrs.get("taken", [])),
        "why": why,
        "run": str(plan.run_dir(trial.number)),
    }


def ranked(plan: SweepPlan, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows, the best first, those without a value last."""
    order = rows.sort_values(plan.metric, ascending=not plan.maximised, kind="stable", na_position="last")
    return [{str(name): value for name, value in row.items()} for row in order.to_dict("records")]


def best(plan: SweepPlan, rows: pd.DataFrame) -> dict[str, Any] | None:
    """The best complete trial, of equals the first; None without one."""
    return next((row for row in ranked(plan, rows) if row["state"] == "complete"), None)


def trust(plan: SweepPlan, rows: pd.DataFrame, best: dict[str, Any], config: Config) -> dict[str, Any]:
    """How far validation tells the best from the others: its 95 % interval, and the number of other trials in it."""
    images = len(prepare.load(config).rows("val"))
    about: dict[str, Any] = {"val_images": images}
    if plan.metric == "val_top1":
        low, high = wilson(round(float(best[plan.metric]) * images), images)
        complete = rows[rows["state"] == "complete"]
        about |= {"low": low, "high": high, "within": int((complete[plan.metric] >= low).sum()) - 1}
    return about


def describe_best(
    plan: SweepPlan, counts: dict[str, int], best: dict[str, Any], trust: dict[str, Any]
) -> tuple[str, str]:
    """A sentence on the best trial with its interval, and one on what that number cannot say."""
    sentence = f"trial {best['number']}: {plan.sweep.metric.name} {best[plan.metric]:.4f}"
    if "low" in trust:
        others = counts["complete"] - 1
        sentence += (
            f", 95 % interval {trust['low']:.3f} to {trust['high']:.3f} ({trust['val_images']} validation images); "
            f"{trust['within']} of the {others} other complete trials lie within it: these images do not tell them apart"
        )
    return sentence, (
        "the best of many looks at the same images is optimistic, and the test split was not read: for a number, "
        "train best.yaml with several seeds and evaluate each once on test"
    )


def importance(trials: Trials) -> dict[str, float] | None:
    """The share of the value's variance that each parameter explains (fANOVA, Hutter et al. 2014).

    Optuna fits a forest of 64 trees to the complete trials. None when they are too few, or all of one value.
    """
    from optuna.importance import (  # imports scikit-learn, which takes a second
        FanovaImportanceEvaluator,
        get_param_importances,
    )

    complete = [trial for trial in trials.all() if trial.state is TrialState.COMPLETE]
    values = {trial.value for trial in complete}
    if len(complete) < trials_for_importance(trials.plan) or len(values) < 2:
        return None
    shares = get_param_importances(trials.study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {key: float(share) for key, share in shares.items()}


def trials_for_importance(plan: SweepPlan) -> int:
    """The number of complete trials that the forest needs."""
    return max(IMPORTANCE_NEEDS, 2 * len(plan.searched))


def write_best(plan: SweepPlan, best: dict[str, Any], config: Config, note: Sequence[str]) -> Path:
    """Write a configuration file that trains the best trial again; return its path."""
    path, common = plan.folder / BEST, plan.common
    run_config = validate_tree(
        {
            **config.model_dump(mode="json"),
            "run": {"name": f"{plan.name}-best", "root": str(common.run.root)},
            "tracking": common.tracking.model_dump(mode="json"),
        },
        str(path),
        Config,
    )
    wrapped = [
        line for sentence in note for line in textwrap.wrap(sentence[0].upper() + sentence[1:], HEADER_WIDTH)
    ]
    command = f"  {_threads(plan, best['number'])}plumage train --config {path}"
    header = "".join(f"# {line}\n" for line in (f"The best of {plan.path}.", command, *wrapped))
    files.write_text(path, header + dump_departures(run_config))
    assert load_config(path) == run_config, f"{path} is not the trial's configuration"
    return path


def _threads(plan: SweepPlan, number: int) -> str:
    """The variable that trains on one thread, as trials on the CPU do: more threads change the last digits of sums."""
    about = RunDirectory(plan.run_dir(number)).read_environment()
    return "OMP_NUM_THREADS=1 " if about["cuda"] is None else ""


def counts(rows: pd.DataFrame) -> dict[str, int]:
    """The number of trials by state."""
    return dict(Counter(rows["state"]))
