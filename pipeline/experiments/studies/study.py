"""The verb `study`: the runs of a study that are still to be done, then its table and its figure."""

import contextlib
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common import console, files, hardware, tables
from pipeline.common.errors import ConfigError, DataError
from pipeline.data.prepare import prepare
from pipeline.experiments import worker_pool
from pipeline.experiments.studies import batch_norm, figures, parity, results
from pipeline.experiments.studies.plan import Member, StudyPlan, find
from pipeline.experiments.studies.task import RunTask
from pipeline.experiments.worker_pool import Outcome
from pipeline.runs.log import best_record


def study(name: str, jobs: int | None, more: Sequence[str]) -> dict[str, Any]:
    """Do one study, or all; what is done already is not done again.

    Args:
        name: of a file in configs/studies, a path, or "all".
        jobs: runs at once; None: one a core.
        more: overrides of every run.

    Raises:
        UserError: a study file or a configuration is wrong, or runs failed; the others went on.
        Stopped: a signal came; the same command goes on.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: has to be at least 1")
    jobs = jobs or hardware.cores()
    plans = [StudyPlan(path, more) for path in find(name)]
    for plan in plans:  # every mistake comes out before anything is run
        plan.tries(), plan.members({})
    done = [_one(plan, jobs) for plan in plans]
    return done[0] if len(done) == 1 else {"studies": done}


def _one(plan: StudyPlan, jobs: int) -> dict[str, Any]:
    started, begun = time.monotonic(), _cpu_seconds()
    tries = plan.tries()
    _run(f"{plan.name}, learning rates", tries, jobs, test=False)
    chosen, tried = _choose(tries)
    members = plan.members(chosen)
    _run(plan.name, members, jobs, test=True)
    runs = pd.DataFrame([results.row(member) for member in members])
    found = results.table(runs)
    apart = results.differences(runs)
    folder = plan.folder
    files.write_text(folder / "table.md", "\n".join(filter(None, map(results.markdown, (found, apart)))))
    tables.write_csv(runs, folder / "runs.csv")
    tables.write_csv(found, folder / "table.csv")
    tables.write_csv(apart, folder / "differences.csv")
    if tried:
        tables.write_csv(pd.DataFrame(tried), folder / "tuned.csv")
    SHOWN[plan.study.show](plan, members, runs)
    about = {
        "study": plan.name,
        "title": plan.study.title,
        "folder": str(folder),
        "runs": len(members),
        "tries": len(tries),
        "jobs": jobs,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(_cpu_seconds() - begun, 1),
    }
    files.write_json(folder / "study.json", {**about, "definition": plan.study.model_dump(mode="json")})
    shown = [
        [entry["condition"], entry["arm"], entry["measure"], results.words(entry)]
        for entry in found.to_dict("records")
    ]
    console.show_table(plan.study.title, ["condition", "arm", "measure", "mean ± sd (95 %)"], shown)
    console.say(f"study  {folder / 'figure.png'}, table.md, table.csv, runs.csv")
    return about


def _cpu_seconds() -> float:
    """Seconds that this process and those that it has waited for have computed."""
    of_all = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in of_all)


def _run(label: str, members: Sequence[Member], jobs: int, *, test: bool) -> None:
    """Do the runs that are not done.

    Raises:
        DataError: some failed; it names the first one and its log.
        RuntimeError: a run ended by a bug, whose traceback is in it.
    """
    due = {member.config.run_dir: member for member in members if not _is_done(member)}
    if not due:
        return
    _prepare(list(due.values()))
    failed: list[tuple[RunTask, Outcome]] = []
    tasks = iter([RunTask(member.config, test) for member in due.values()])
    done = len(members) - len(due)
    with (
        console.bar(label, len(members), "runs", done) as bar,
        contextlib.closing(worker_pool.run_tasks(lambda: next(tasks, None), jobs)) as ended,
    ):
        for task, outcome in ended:
            member = due[task.config.run_dir]
            if outcome.status == "bug":
                raise RuntimeError(f"{member.name}, in another process:\n{outcome.said}")
            if outcome.status in ("failed", "lost") or (outcome.status == "diverged" and test):
                failed.append((task, outcome))
            else:
                stamp = {"settings": member.digest, "status": outcome.status}
                files.write_json(_stamp(member), stamp)
            bar.advance(1, last=member.name)
    if failed:
        task, outcome = failed[0]
        raise DataError(
            f"{label}: {len(failed)} of {len(members)} runs failed, the first: {task.config.run.name}: {outcome.said}; "
            f"its log is {task.log}; when that is mended, the same command does what is missing"
        )


def _stamp(member: Member) -> Path:
    return member.config.run_dir / "study.json"


def _is_done(member: Member) -> bool:
    stamp = _stamp(member)
    return stamp.is_file() and bool(files.read_json(stamp)["settings"] == member.digest)


def _prepare(members: Sequence[Member]) -> None:
    """The data of the runs: each sample table and store once."""
    known = set()
    for member in members:
        config = member.config
        if (key := files.digest_of([config.seed, config.data.model_dump(mode="json")])) not in known:
            known.add(key)
            prepare(config)


def _choose(tries: Sequence[Member]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The learning rate of each tuned arm, by validation alone; and all that were tried, as rows.

    A rate with which training diverged is not chosen.

    Raises:
        DataError: with all rates of an arm, training diverged.
    """
    rows: list[dict[str, Any]] = []
    for member in tries:
        log = results.log(member)
        diverged = files.read_json(_stamp(member))["status"] == "diverged"
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
        learned = [row for row in rows if row["arm"] == arm and row["val_top1"] is not None]
        if not learned:
            raise DataError(f"tune_lr: {arm} diverged with every learning rate; give it lower ones")
        chosen[arm] = max(learned, key=lambda row: (row["val_top1"], -row["val_loss"]))["lr"]
    return chosen, rows


Show = Callable[[StudyPlan, Sequence[Member], pd.DataFrame], None]


def _curves(plan: StudyPlan, members: Sequence[Member], _runs: pd.DataFrame) -> None:
    figures.curves(plan.folder / "figure.png", plan.study.title, members)


def _depth(plan: StudyPlan, members: Sequence[Member], runs: pd.DataFrame) -> None:
    figures.depth(plan.folder / "figure.png", plan.study.title, members, runs)


def _optimizers(plan: StudyPlan, members: Sequence[Member], _runs: pd.DataFrame) -> None:
    figures.optimizers(plan.folder / "figure.png", plan.study.title, members)


def _batch_norm(plan: StudyPlan, members: Sequence[Member], runs: pd.DataFrame) -> None:
    of_mode, of_claim = batch_norm.measure(members)
    measures = ["eval", *(f"train_{size}" for size in batch_norm.BATCHES)]
    found = results.table(of_mode, measures)
    tables.write_csv(of_mode, plan.folder / "modes_runs.csv")
    tables.write_csv(found, plan.folder / "modes.csv")
    tables.write_csv(of_claim, plan.folder / "claims_runs.csv")
    files.write_text(plan.folder / "modes.md", results.markdown(found))
    files.write_text(plan.folder / "claims.md", batch_norm.claims_table(of_claim))
    batch_norm.draw(plan.folder / "figure.png", plan.study.title, of_mode, runs)


def _parity(plan: StudyPlan, members: Sequence[Member], _runs: pd.DataFrame) -> None:
    measured = parity.measure(members)
    found = results.table(measured, list(parity.MEASURES))
    tables.write_csv(measured, plan.folder / "parity_runs.csv")
    tables.write_csv(found, plan.folder / "parity.csv")
    files.write_text(plan.folder / "parity.md", results.markdown(found))
    parity.draw(plan.folder / "figure.png", plan.study.title, measured)


SHOWN: dict[str, Show] = {
    "curves": _curves,
    "depth": _depth,
    "optimizers": _optimizers,
    "batch_norm": _batch_norm,
    "parity": _parity,
}
