"""The results of a sweep: the value of a trial, and the importance of the parameters."""

import json
from pathlib import Path

import pytest

from pipeline.experiments.sweeps import results
from pipeline.experiments.sweeps.plan import SweepPlan
from tests.helpers.sweeps import SWEEP, untrained_trials, write_sweep


@pytest.mark.parametrize(
    ("name", "goal", "best"), [("val_top1", "maximize", 0.9), ("val_loss", "minimize", 0.5)]
)
def test_a_trials_value_is_its_best_over_the_epochs(
    tmp_path: Path, name: str, goal: str, best: float
) -> None:
    plan = SweepPlan(write_sweep(tmp_path, metric={"name": f"epoch/{name}", "goal": goal}))
    assert results.value(plan, 0) is None
    values = [(0.2, 1.5), (0.9, 0.6), (0.7, 0.5), (0.8, None)]
    whole = {"kind": "epoch", "phase": "sgd", "lr": 0.1, "train_loss": 1.0, "train_top1": 0.5}
    lines = [
        {**whole, "step": epoch, "epoch": epoch, "val_top1": top1, "val_loss": loss}
        for epoch, (top1, loss) in enumerate(values, start=1)
    ]
    plan.run_dir(0).mkdir(parents=True)
    (plan.run_dir(0) / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert results.value(plan, 0) == best


def test_importance_finds_the_parameter_that_matters(tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        method="random",
        parameters={**SWEEP["parameters"], "optim.momentum": {"min": 0.1, "max": 0.9}},
    )
    assert results.importance(untrained_trials(path, 9)) is None
    shares = results.importance(untrained_trials(path, 40))
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == ["optim.nesterov", "optim.lr", "optim.momentum"]  # as `objective` has it
    assert shares["optim.momentum"] < 0.1


def test_a_damaged_log_of_one_trial_does_not_hide_the_others(tmp_path: Path) -> None:
    shared = untrained_trials(write_sweep(tmp_path), 3)
    before = results.table(shared)
    log = shared.plan.run_dir(1) / "log.jsonl"
    log.write_text("no record\n")
    rows = results.table(shared)
    assert f"{log}, line 1: no record of a log" in rows["why"][1]
    assert rows["val_top1"][1] == shared.all()[1].value
    assert rows.drop(1).equals(before.drop(1))
