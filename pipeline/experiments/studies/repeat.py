"""The verb `repeat`: one recipe with several seeds, and its numbers over seeds and images together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common import console, files, tables
from pipeline.evaluation import compare, compare_otherwise, measures
from pipeline.evaluation.compare import ComparedRun
from pipeline.evaluation.measures import Measure
from pipeline.experiments import worker_pool
from pipeline.experiments.studies import figures, results
from pipeline.experiments.studies.plan import RepeatPlan
from pipeline.experiments.studies.study import run_missing
from pipeline.runs import repeats
from pipeline.runs.directory import RunDirectory


def repeat(path: Path, seeds: Sequence[int], jobs: int | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a run configuration with each seed, evaluate each run once on test, and write their table.

    Runs that are done are not repeated.

    Args:
        seeds: different ones, at least one.
        jobs: runs at once; None: one a GPU, or one a core.
        overrides: of every run.

    Raises:
        UserError: the configuration is wrong, or runs failed; the others went on.
        Stopped: a signal came; the same command resumes.
    """
    plan = RepeatPlan(path, seeds, overrides)
    members = plan.members({})
    places = worker_pool.places(jobs, (member.config for member in members))
    run_missing(plan.name, members, places, test=True)
    folders = [member.config.run_dir for member in members]
    runs = [compare.read(folder, "test", folder.name) for folder in folders]
    for run in runs[1:]:
        compare.check_same_data(runs[0], run)
    taken = _measures(runs, [RunDirectory(folder) for folder in folders])
    predicted = [run.table for run in runs]
    by_seed = measures.values(predicted, taken)
    by_seed.insert(0, "seed", list(seeds))
    by_seed["run"] = [folder.name for folder in folders]
    table = measures.over_seeds(predicted, taken)
    tables.write_csv(by_seed, plan.folder / "runs.csv")
    tables.write_csv(table, plan.folder / "table.csv")
    files.write_text(plan.folder / "table.md", _markdown(table))
    figures.curves(plan.folder / "figure.png", plan.study.title, members)
    about = {
        "repeat": plan.name,
        "folder": str(plan.folder),
        "seeds": list(seeds),
        "n": len(predicted[0]),
        "numbers": _plain(table),
    }
    files.write_json(plan.folder / "table.json", about)
    repeats.write(plan.folder, folders, seeds)
    _show(plan, table, len(predicted[0]))
    return about


def _measures(runs: Sequence[ComparedRun], folders: Sequence[RunDirectory]) -> list[Measure]:
    """What every run has, and what these have: label sets, and the ranks of a hierarchy."""
    others = compare_otherwise.measures(folders, "test", runs[0].class_names)
    return [*measures.OF_EVERY_RUN, *map(_weighted, others)]


def _weighted(other: compare_otherwise.Measure) -> Measure:
    return Measure(other.name, lambda table: measures.MeanOverImages(other.of(table)))


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows in plain types; the sd of one run, and ends of an interval that one image does not tell, are None."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def _markdown(table: pd.DataFrame) -> str:
    head = ["measure", "runs", "mean ± sd over seeds", "95 % over seeds and images"]
    return results.markdown_table([head, ["---"] * len(head), *_cells(table)])


def _cells(table: pd.DataFrame) -> list[list[str]]:
    number = results.format_number
    return [
        [
            row["measure"],
            str(row["runs"]),
            number(row["mean"]) + ("" if row["sd"] is None else f" ± {number(row['sd'])}"),
            "-" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}",
        ]
        for row in _plain(table)
    ]


def _show(plan: RepeatPlan, table: pd.DataFrame, images: int) -> None:
    head = ["measure", "runs", "mean ± sd", "95 % over seeds and images"]
    console.show_table(f"{plan.study.title}; test, {images:,} images", head, _cells(table))
    console.say(f"repeat  {plan.folder}: table.md, table.csv, table.json, runs.csv, figure.png")
