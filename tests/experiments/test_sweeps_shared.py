"""A sweep that several commands share, or that was begun by an earlier one: what they may change, and what they find."""

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.common import files
from pipeline.common.errors import ConfigError, DataError
from pipeline.data import prepare
from pipeline.experiments import worker_pool
from pipeline.experiments.sweeps import results, sweep
from pipeline.experiments.sweeps.definition import DEFINITION, fix_definition, fix_samples
from pipeline.experiments.sweeps.plan import SweepPlan
from pipeline.experiments.sweeps.trials import MOST_KILLS, Trials
from pipeline.experiments.worker_pool import Outcome, Places
from tests.helpers.sweeps import SWEEP, write_sweep

LOST = Outcome("lost", "its process ended with code -9")
RATES = {"optim.lr": {"values": [0.02, 0.01, 0.005, 0.001]}}


def run_here(next_task: Any, places: Places) -> Any:
    while places.jobs > 0 and (task := next_task()):
        yield task, task.run()


@pytest.mark.parametrize("until_others_end", [False, True])
def test_a_smaller_limit_takes_up_what_a_killed_command_with_a_larger_one_has_begun(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until_others_end: bool
) -> None:
    monkeypatch.setattr(worker_pool, "redirect_output", lambda _: None)
    monkeypatch.setattr(worker_pool, "run_tasks", run_here)
    plan = SweepPlan(write_sweep(tmp_path, method="grid", parameters=RATES), ("train.epochs=1",))
    sweep._do_sweep(plan, 2, 1, None, until_others_end=False)
    shared = Trials(plan, None)
    for killed in [shared.claim(4), shared.claim(4)]:
        assert killed is not None
        killed.lock.close()  # as the kernel does when the process dies
    real_sleep, polls = time.sleep, itertools.count(1)

    def sleep(seconds: float) -> None:
        assert seconds != sweep.POLL_S or next(polls) < 3, "it waits for trials that no process runs"
        real_sleep(seconds / 100)

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    summary = sweep._do_sweep(plan, 2, 1, None, until_others_end=until_others_end)
    assert summary["states"] == {"complete": 4}


def test_an_abandoned_trial_is_told_from_a_running_one(tmp_path: Path) -> None:
    shared = Trials(SweepPlan(write_sweep(tmp_path)), None)
    claims = [shared.claim(2), shared.claim(2)]
    assert all(claims)
    claims[0].lock.close()  # type: ignore[union-attr]
    assert results.table(shared)["state"].tolist() == ["abandoned", "running"]


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_what_changes_no_trial_may_differ_from_command_to_command(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, description="a tpyo", run_cap=3)
    fix_definition(SweepPlan(path), None)
    written = (SweepPlan(path).folder / DEFINITION).read_bytes()
    words = yaml.safe_load(path.read_text())["command"]
    words.insert(-1, "data.workers=0")
    tags = {"tracking.tags": {"value": ["birds"]}, "train.device": {"value": "cpu"}}
    parameters = SWEEP["parameters"] | tags
    rewrite(path, description="a typo", run_cap=5, project="birds", command=words, parameters=parameters)
    here = (
        f"data.root={tmp_path}",
        "data.workers=3",
        "eval.batch_size=7",
        "train.checkpoint_every_minutes=1",
    )
    fix_definition(SweepPlan(path, here), None)
    assert (SweepPlan(path).folder / DEFINITION).read_bytes() == written


def test_the_same_weights_may_lie_elsewhere_and_other_weights_at_the_same_path_are_of_another_sweep(
    tmp_path: Path,
) -> None:
    """Two machines that share a sweep need not have their files at one path."""
    path, here, there = write_sweep(tmp_path), tmp_path / "here.pth", tmp_path / "there.pth"

    def fix(weights: Path) -> None:
        fix_definition(SweepPlan(path, ("model.pretrained=true", f"model.weights={weights}")), None)

    for file in (here, there):
        file.write_bytes(b"weights")
    fix(here)
    fix(there)
    here.write_bytes(b"others")
    with pytest.raises(ConfigError, match='weights "[0-9a-f]{64}" -> "[0-9a-f]{64}"'):
        fix(here)


def test_the_weights_of_a_sweep_of_an_earlier_version_are_compared_by_their_path(tmp_path: Path) -> None:
    path, weights = write_sweep(tmp_path), tmp_path / "here.pth"
    weights.write_bytes(b"weights")
    plan = SweepPlan(path, ("model.pretrained=true", f"model.weights={weights}"))
    fix_definition(plan, None)
    written = files.read_json(plan.folder / DEFINITION, dict[str, Any])
    files.write_json(
        plan.folder / DEFINITION, {key: value for key, value in written.items() if key != "weights"}
    )
    fix_definition(plan, None)
    with pytest.raises(ConfigError, match=r'weights ".*here\.pth" -> null'):
        fix_definition(SweepPlan(path), None)


def test_corrections_that_a_machine_has_elsewhere_are_compared_by_the_table_that_they_make(
    tmp_path: Path,
) -> None:
    path = write_sweep(tmp_path)
    for name in ("here", "there"):
        fix_definition(SweepPlan(path, (f"data.corrections={tmp_path / name}.csv",)), None)


@pytest.mark.parametrize(
    ("changes", "override", "said"),
    [
        ({"method": "bayes"}, "seed=0", 'sweep.method "random" -> "bayes"'),
        ({"metric": {"name": "epoch/val_loss"}}, "seed=0", "sweep.metric.goal"),
        (
            {"parameters": {"optim.nesterov": {"values": [True, False]}}},
            "seed=0",
            "sweep.parameters.optim.lr",
        ),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1}}, "seed=0", "sweep.early_terminate null"),
        ({}, "optim.momentum=0.5", "config.optim.momentum 0.9 -> 0.5"),
        ({}, "train.deterministic=true", "config.train.deterministic"),
        ({}, "train.max_steps=3", "config.train.max_steps null -> 3"),
    ],
)
def test_what_changes_a_trial_is_of_another_sweep_and_nothing_is_to_be_removed(
    tmp_path: Path, changes: dict[str, Any], override: str, said: str
) -> None:
    path = write_sweep(tmp_path)
    fix_definition(SweepPlan(path), None)
    rewrite(path, **changes)
    with pytest.raises(ConfigError) as refused:
        fix_definition(SweepPlan(path, (override,)), None)
    assert said in str(refused.value)
    assert str(refused.value).endswith("; take it back, or name this one with run.name=NAME")


def test_other_data_are_refused_wherever_they_lie(birds: Path, tmp_path: Path) -> None:
    plan = SweepPlan(write_sweep(tmp_path))
    fix_definition(plan, None)
    data = prepare.load(plan.common)
    for _ in range(2):
        fix_samples(plan, data)
    with pytest.raises(DataError, match="began with other data"):
        fix_samples(plan, replace(data, samples=data.samples.iloc[1:]))
    fix_definition(plan, None)


@pytest.mark.parametrize("key", ["config", "sweep"])
def test_a_damaged_definition_is_named(tmp_path: Path, key: str) -> None:
    plan = SweepPlan(write_sweep(tmp_path))
    fix_definition(plan, None)
    path = plan.folder / DEFINITION
    files.write_json(path, files.read_json(path, dict[str, Any]) | {key: 7})
    with pytest.raises(DataError, match=rf"sweep.json: damaged \({key}: no mapping\)"):
        fix_definition(plan, None)


def test_processes_that_end_before_they_claim_a_trial_end_the_sweep(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[Any] = []

    def lose_all(next_task: Any, _places: Places) -> Any:
        while task := next_task():
            assert len(lost) < 100, "processes that die are replaced for ever"
            lost.append(task)
            yield task, LOST

    monkeypatch.setattr(worker_pool, "run_tasks", lose_all)
    plan = SweepPlan(write_sweep(tmp_path))
    with pytest.raises(DataError, match=r"6 worker processes in a row .* \(.* code -9\).* fewer --jobs"):
        sweep._do_sweep(plan, 5, 2, None, until_others_end=False)
    assert len(lost) == 2 * sweep.MOST_LOSSES
    assert Trials(plan, None).all() == []


def test_processes_that_end_in_their_trial_count_against_the_trial_alone(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SweepPlan(write_sweep(tmp_path))

    def lose_in_trial(next_task: Any, _places: Places) -> Any:
        while task := next_task():
            claim = Trials(plan, None).claim(task.limit)
            if claim is not None:
                claim.lock.close()
            yield task, Outcome("done") if claim is None else LOST

    monkeypatch.setattr(worker_pool, "run_tasks", lose_in_trial)
    with pytest.raises(DataError, match=r"none of its trials was completed \(5 failed\)"):
        sweep._do_sweep(plan, 5, 1, None, until_others_end=False)
    assert all(len(trial.user_attrs["taken"]) == MOST_KILLS for trial in Trials(plan, None).all())


def test_a_sweep_by_validation_is_refused_where_no_image_validates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of one's own may bring their validation: only the data tell."""

    class Nothing:
        def rows(self, split: str) -> list[int]:
            assert split == "val"
            return []

    monkeypatch.setattr(sweep, "prepare", lambda _: Nothing())
    path = write_sweep(tmp_path)
    with pytest.raises(
        ConfigError, match=r"metric\.name: val_top1 needs validation, and no image of the data set"
    ):
        sweep._do_sweep(SweepPlan(path), 2, 1, None, until_others_end=False)
    assert not list(tmp_path.rglob("trials"))
