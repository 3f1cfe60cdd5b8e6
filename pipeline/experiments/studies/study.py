"""The verb `study`: do the missing runs of a study, then write its table and its figure."""

import contextlib
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common import console, files, tables
from pipeline.common.errors import DataError
from pipeline.data.prepare import prepare
from pipeline.experiments import worker_pool
from pipeline.experiments.studies import batch_norm, figures, parity, results
from pipeline.experiments.studies.plan import Member, StudyPlan, find
from pipeline.experiments.studies.task import RunTask
from pipeline.experiments.worker_pool import Outcome, Places
from pipeline.runs.log import best_record


@dataclass(frozen=True)
class Done:
    """The stamp of a run that has ended: the digest of its configuration, and how it ended."""

    settings: str
    status: str


def study(name: str, jobs: int | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Do one study, or all; runs that are done are not repeated.

    Args:
        name: the name of a file in configs/studies, a path, or "all".
        jobs: runs at once; None: one a GPU, or one a core.
        overrides: of every run.

    Raises:
        UserError: a study file or a configuration is wrong, or runs failed; the others went on.
        Stopped: a signal came; the same command resumes.
    """
    plans = [StudyPlan(path, overrides) for path in find(name)]
    for plan in plans:  # all mistakes are found before anything runs
        plan.tuning_members(), plan.members({})
    summaries = [_do_study(plan, jobs) for plan in plans]
    return summaries[0] if len(summaries) == 1 else {"studies": summaries}


def _do_study(plan: StudyPlan, jobs: int | None) -> dict[str, Any]:
    started, started_cpu = time.monotonic(), _cpu_seconds()
    places = worker_pool.places(jobs, (member.config for member in plan.members({})))
    tuning = plan.tuning_members()
    run_missing(f"{plan.name}, learning rates", tuning, places, test=False)
    chosen, tried = _choose_learning_rates(tuning)
    members = plan.members(chosen)
    run_missing(plan.name, members, places, test=True)
    runs = pd.DataFrame([results.run_row(member) for member in members])
    summary, differences = results.summary_table(runs), results.differences(runs)
    folder = plan.folder
    files.write_text(
        folder / "table.md", "\n".join(filter(None, map(results.markdown, (summary, differences))))
    )
    tables.write_csv(runs, folder / "runs.csv")
    tables.write_csv(summary, folder / "table.csv")
    tables.write_csv(differences, folder / "differences.csv")
    if tried:
        tables.write_csv(pd.DataFrame(tried), folder / "tuned.csv")
    SHOW[plan.study.show](plan, members, runs)
    about = {
        "study": plan.name,
        "title": plan.study.title,
        "folder": str(folder),
        "runs": len(members),
        "tries": len(tuning),
        "jobs": places.jobs,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(_cpu_seconds() - started_cpu, 1),
    }
    files.write_json(folder / "study.json", {**about, "definition": plan.study.model_dump(mode="json")})
    lines = [
        [entry["condition"], entry["arm"], entry["measure"], results.format_mean(entry)]
        for entry in summary.to_dict("records")
    ]
    console.show_table(plan.study.title, ["condition", "arm", "measure", "mean ± sd (95 %)"], lines)
    console.say(f"study  {folder / 'figure.png'}, table.md, table.csv, runs.csv")
    return about


def _cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_missing(label: str, members: Sequence[Member], places: Places, *, test: bool) -> None:
    """Do the runs that are not done; test: evaluate each once on the test split.

    Raises:
        DataError: some failed; the message names the first one and its log.
        RuntimeError: a bug ended a run, and the others went on; the message holds the traceback.
    """
    missing = {member.config.run_dir: member for member in members if not _is_done(member)}
    if not missing:
        return
    _prepare_data(list(missing.values()))
    failed: list[tuple[RunTask, Outcome]] = []
    tasks = iter([RunTask(member.config, test) for member in missing.values()])
    done = len(members) - len(missing)
    with (
        console.bar(label, len(members), "runs", done) as bar,
        contextlib.closing(worker_pool.run_tasks(lambda: next(tasks, None), places)) as ended,
    ):
        for task, outcome in ended:
            member = missing[task.config.run_dir]
            if outcome.status in ("failed", "lost", "bug") or (outcome.status == "diverged" and test):
                failed.append((task, outcome))
            else:
                files.write_json(_stamp(member), asdict(Done(member.digest, outcome.status)))
            bar.advance(1, last=member.name)
    for task, outcome in failed:
        if outcome.status == "bug":
            raise RuntimeError(f"{task.config.run.name}, in another process:\n{outcome.message}")
    if failed:
        task, outcome = failed[0]
        raise DataError(
            f"{label}: {len(failed)} of {len(members)} runs failed, the first: {task.config.run.name}: "
            f"{outcome.message}; its log is {task.log}; once that is fixed, the same command runs what is missing"
        )


def _stamp(member: Member) -> Path:
    return member.config.run_dir / "study.json"


def _is_done(member: Member) -> bool:
    stamp = _stamp(member)
    try:
        return stamp.is_file() and files.read_json(stamp, Done).settings == member.digest
    except DataError:
        return False  # a damaged stamp costs a look at a run that has ended


def _prepare_data(members: Sequence[Member]) -> None:
    """Prepare the data of the runs, each sample table and store once."""
    prepared = set()
    for member in members:
        config = member.config
        if (key := files.digest_of([config.split_seed, config.data.model_dump(mode="json")])) not in prepared:
            prepared.add(key)
            prepare(config)


def _choose_learning_rates(tuning: Sequence[Member]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The learning rate of each tuned arm, by validation alone; and a row for each that was tried.

    A rate that made training diverge is not chosen.

    Raises:
        DataError: all rates of an arm made training diverge.
    """
    rows: list[dict[str, Any]] = []
    for member in tuning:
        log = results.read_log(member)
        diverged = files.read_json(_stamp(member), Done).status == "diverged"
        best = (None if diverged else best_record(log)) or {}
        rows.append(
            {
                "arm": member.arm,
                "lr": member.lr,
                "val_top1": best.get("val_top1"),
                "val_loss": best.get("val_loss"),
                "cpu_seconds": log[-1]["cpu_seconds"] if log else 0.0,
            }
        )
    chosen: dict[str, float] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        validated = [row for row in rows if row["arm"] == arm and row["val_top1"] is not None]
        if not validated:
            raise DataError(f"tune_lr: {arm} diverged with every learning rate; give it lower ones")
        chosen[arm] = max(validated, key=lambda row: (row["val_top1"], -row["val_loss"]))["lr"]
    return chosen, rows


Show = Callable[[StudyPlan, Sequence[Member], pd.DataFrame], None]


def _curves(plan: StudyPlan, members: Sequence[Member], _runs: pd.DataFrame) -> None:
    figures.curves(plan.folder / "figure.png", plan.study.title, members)


def _depth(plan: StudyPlan, members: Sequence[Member], runs: pd.DataFrame) -> None:
    figures.depth(plan.folder / "figure.png", plan.study.title, members, runs)


def _optimizers(plan: StudyPlan, members: Sequence[Member], _runs: pd.DataFrame) -> None:
    figures.optimizers(plan.folder / "figure.png", plan.study.title, members)


def _batch_norm(plan: StudyPlan, members: Sequence[Member], runs: pd.DataFrame) -> None:
    modes, claims = batch_norm.measure(members)
    measures = ["eval", *(f"train_{size}" for size in batch_norm.BATCHES)]
    summary = results.summary_table(modes, measures)
    tables.write_csv(modes, plan.folder / "modes_runs.csv")
    tables.write_csv(summary, plan.folder / "modes.csv")
    tables.write_csv(claims, plan.folder / "claims_runs.csv")
    files.write_text(plan.folder / "modes.md", results.markdown(summary))
    files.write_text(plan.folder / "claims.md", batch_norm.claims_table(claims))
    batch_norm.draw(plan.folder / "figure.png", plan.study.title, modes, runs)


def _parity(plan: StudyPlan, members: Sequence[Member], _runs: pd.DataFrame) -> None:
    differences = parity.measure(members)
    summary = results.summary_table(differences, list(parity.MEASURES))
    tables.write_csv(differences, plan.folder / "parity_runs.csv")
    tables.write_csv(summary, plan.folder / "parity.csv")
    files.write_text(plan.folder / "parity.md", results.markdown(summary))
    parity.draw(plan.folder / "figure.png", plan.study.title, differences)


SHOW: dict[str, Show] = {
    "curves": _curves,
    "depth": _depth,
    "optimizers": _optimizers,
    "batch_norm": _batch_norm,
    "parity": _parity,
}
