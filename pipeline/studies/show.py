"""What is drawn and measured of a study's finished runs, by the name in its file."""

from collections.abc import Callable, Sequence

import pandas as pd

from pipeline.common import files, tables
from pipeline.experiments.studies import batch_norm, figures, parity, results
from pipeline.experiments.studies.plan import Member, Plan

Show = Callable[[Plan, Sequence[Member], pd.DataFrame], None]


def _curves(plan: Plan, members: Sequence[Member], _runs: pd.DataFrame) -> None:
    figures.curves(plan.folder / "figure.png", plan.study.title, members)


def _depth(plan: Plan, members: Sequence[Member], runs: pd.DataFrame) -> None:
    figures.depth(plan.folder / "figure.png", plan.study.title, members, runs)


def _optimizers(plan: Plan, members: Sequence[Member], _runs: pd.DataFrame) -> None:
    figures.optimizers(plan.folder / "figure.png", plan.study.title, members)


def _batch_norm(plan: Plan, members: Sequence[Member], runs: pd.DataFrame) -> None:
    of_mode, of_claim = batch_norm.measure(members)
    measures = ["eval", *(f"train_{size}" for size in batch_norm.BATCHES)]
    found = results.table(of_mode, measures)
    tables.write(of_mode, plan.folder / "modes_runs.csv")
    tables.write(found, plan.folder / "modes.csv")
    tables.write(of_claim, plan.folder / "claims_runs.csv")
    files.write_text(plan.folder / "modes.md", results.markdown(found))
    files.write_text(plan.folder / "claims.md", batch_norm.claims_table(of_claim))
    batch_norm.draw(plan.folder / "figure.png", plan.study.title, of_mode, runs)


def _parity(plan: Plan, members: Sequence[Member], _runs: pd.DataFrame) -> None:
    measured = parity.measure(members)
    found = results.table(measured, list(parity.MEASURES))
    tables.write(measured, plan.folder / "parity_runs.csv")
    tables.write(found, plan.folder / "parity.csv")
    files.write_text(plan.folder / "parity.md", results.markdown(found))
    parity.draw(plan.folder / "figure.png", plan.study.title, measured)


SHOWN: dict[str, Show] = {
    "curves": _curves,
    "depth": _depth,
    "optimizers": _optimizers,
    "batch_norm": _batch_norm,
    "parity": _parity,
}
