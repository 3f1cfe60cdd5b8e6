"""Sweep files: what W&B takes, what is refused, and that W&B's own code makes the same of them."""

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import main
from pipeline.cli.arguments import parse
from pipeline.common.errors import ConfigError
from pipeline.config.load import load_config, validate_tree
from pipeline.experiments.sweeps.parameter import Parameter
from pipeline.experiments.sweeps.plan import ARGUMENTS, FOLDER, SweepPlan, load_plans
from tests.helpers.sweeps import COMMAND, SWEEP, write_sweep


def parameter(**given: Any) -> Parameter:
    return validate_tree(given, "here", Parameter)


# The shipped files


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_sweeps_are_short_and_say_how_they_are_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 30
    assert re.search(r"#   make sweep SWEEP=configs/sweeps/\S+ N=\d+", text)
    parameters = yaml.safe_load(text)["parameters"].values()
    ends = [given[end] for given in parameters for end in ("min", "max") if end in given]
    assert all(isinstance(end, int | float) for end in ends)  # 1e-4 without a point is text to W&B


def test_the_shipped_sweeps_are_checked_and_their_stages_begin_with_the_best_of_the_one_before() -> None:
    assert [plan.name for plan in load_plans(FOLDER / "birds.yaml", [])] == ["birds"]
    stages = load_plans(FOLDER / "article", [])
    for before, after in pairwise(stages):
        assert after.base.file == before.folder / "best.yaml"
    assert [plan.common.train.subset for plan in stages] == [0.1, 1.0, 1.0]


# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metod": "grid"}, "search.yaml: metod: unknown key"),
        ({"method": "baies"}, "did you mean bayes?"),
        ({"metric": {"name": "epoch/val_top2", "goal": "maximize"}}, "did you mean epoch/val_top1?"),
        ({"metric": {"name": "loss"}}, "is not one of an epoch's values"),
        ({"metric": {"name": "test/top1", "goal": "maximize"}}, "the test split never chooses"),
        ({"metric": {"name": "epoch/val_top1"}}, "W&B's default is minimize"),
        (
            {"command": ["${program}", "train", "${args}"]},
            "has to be a training that ends with the parameters",
        ),
        (
            {"command": [*COMMAND[:-1], "--fast", ARGUMENTS]},
            "--fast is neither --config FILE nor an override",
        ),
        (
            {"command": [*COMMAND[:5], "--config", "no.yaml", ARGUMENTS]},
            "no.yaml: no such configuration file",
        ),
        ({"program": "train.py"}, "has to be a training that ends with the parameters"),
        ({"early_terminate": {"type": "hyperband"}}, "give one of min_iter, and max_iter with s"),
        ({"early_terminate": {"type": "median", "min_iter": 1}}, "allowed: hyperband"),
        ({"parameters": {"optim.lr": {"value": 0.1}}}, "there is nothing to search"),
        ({"parameters": {"optim.lrr": {"values": [1, 2]}}}, "did you mean optim.lr?"),
        ({"parameters": {"optim.lr": {"values": [0.1, -1]}}}, "a trial with optim.lr=-1"),
        ({"parameters": {"optim.lr": {"values": []}}}, "parameters.optim.lr: values: [] is not allowed"),
        ({"parameters": {"run.name": {"values": ["a", "b"]}}}, "every trial has its own"),
        ({"parameters": {"optim.lr": {"min": "1e-5", "max": 0.1}}}, "write 1.0e-05"),
        ({"parameters": {"optim.lr": {"min": 0.1, "max": 0.1}}}, "min 0.1 has to be below max 0.1"),
        ({"parameters": {"optim.lr": {"min": 0.1}}}, "a uniform parameter needs max"),
        ({"parameters": {"optim.lr": {"values": [1], "min": 0.1}}}, "a categorical parameter has no min"),
        (
            {"parameters": {"optim.lr": {"distribution": "normal", "mu": 1}}},
            "distribution normal cannot be drawn here",
        ),
        (
            {"parameters": {"optim.lr": {"values": [1, 2], "probabilities": [0.1, 0.9]}}},
            "cannot be drawn here",
        ),
        (
            {"parameters": {"optim.clip_norm": {"values": [None, 1]}}},
            "null reaches the command as the text None",
        ),
        (
            {"parameters": {"optim": {"parameters": {"lr": {"value": 1}}}}},
            "write dotted keys, such as optim.lr",
        ),
        ({"parameters": {"optim.lr": 3}}, "parameters.optim.lr: holds int"),
        ({"method": "grid"}, "parameters.optim.lr: a grid needs values"),
        (
            {"method": "grid", "parameters": {"seed": {"min": 0, "max": 2000}}},
            "the grid has 2,001 combinations",
        ),
        ({}, "set the number of trials with --trials N, or run_cap in the file"),
    ],
)
def test_a_wrong_sweep_is_one_sentence_before_any_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    assert main.run(["sweep", str(write_sweep(tmp_path, **changes))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_sweep_needs_validation_and_a_file_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs validation, and data.val_fraction is 0"):
        load_plans(write_sweep(tmp_path), ["data.val_fraction=0"])
    own = ["data.source=folder", "data.path=birds"]  # which may bring validation images
    assert load_plans(write_sweep(tmp_path), ["data.val_fraction=0", *own])
    with pytest.raises(ConfigError, match="did you mean configs/sweeps/birds.yaml"):
        load_plans(Path("configs/sweeps/bird.yaml"), [])
    with pytest.raises(ConfigError, match="optim.lr is searched; drop optim.lr=1"):
        load_plans(write_sweep(tmp_path), ["optim.lr=1"])
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_plans(tmp_path / "broken.yaml", [])


# What becomes of it


def test_a_trial_is_the_base_with_the_commands_overrides_the_command_lines_and_its_own(
    tmp_path: Path,
) -> None:
    plan = SweepPlan(write_sweep(tmp_path), ("optim.momentum=0.5", "run.name=mine"))
    config = plan.config(7, {"optim.lr": 0.02, "optim.nesterov": False})
    assert (config.optim.lr, config.optim.nesterov, config.optim.momentum) == (0.02, False, 0.5)
    assert config.run_dir == tmp_path / "runs/sweeps/mine/trial-007"
    assert config.tracking.wandb == "disabled"  # the command's is for W&B's agent
    with_wandb = SweepPlan(plan.path, ("tracking.wandb=offline",))
    assert with_wandb.config(0, {}).tracking.wandb == "offline"


def test_a_grid_is_all_combinations_in_the_files_order(tmp_path: Path) -> None:
    parameters = {"optim.batch_size": {"min": 4, "max": 5}, "schedule": {"values": [{"name": "constant"}]}}
    parameters |= {"data.progressive": {"value": []}, "optim.nesterov": {"values": [True, False]}}
    plan = SweepPlan(write_sweep(tmp_path, method="grid", parameters=parameters))
    plan.check()
    assert [tuple(values.values()) for values in plan.grid()] == [
        (size, "{'name': 'constant'}", nesterov) for size in (4, 5) for nesterov in (True, False)
    ]
    config = plan.config(0, plan.grid()[3])
    assert (config.optim.batch_size, config.optim.nesterov, config.schedule.name) == (5, False, "constant")


@pytest.mark.parametrize(
    ("given", "drawn", "value"),
    [
        ({"distribution": "q_uniform", "min": 10, "max": 100, "q": 10}, 34.9, 30),
        ({"distribution": "q_uniform", "min": 12, "max": 100, "q": 10}, 12.5, 20),  # 10 would be below min
        ({"distribution": "q_uniform", "min": 0.1, "max": 0.9, "q": 0.1}, 0.31, 0.3),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 64, "q": 8}, 62.0, 64),
        ({"min": 0.0, "max": 1.0}, 0.1234, 0.1234),
        ({"min": 1, "max": 9}, 4, 4),
    ],
)
def test_what_is_drawn_is_rounded_to_multiples_within_the_range(
    given: dict[str, Any], drawn: float, value: float
) -> None:
    rounded = parameter(**given).rounded(drawn)
    assert rounded == value
    assert type(rounded) is type(value)


def test_log_uniform_has_the_logarithms_of_its_ends() -> None:
    low, high = parameter(distribution="log_uniform", min=-3.0, max=0.0).bounds
    assert (low, high) == (pytest.approx(math.exp(-3)), 1.0)


def test_hyperbands_epochs_are_wandbs() -> None:
    def first(**given: Any) -> int:
        rule = {"early_terminate": {"type": "hyperband", **given}}
        return validate_tree({**SWEEP, **rule}, "here", _sweep()).early_terminate.first_epoch

    assert first(min_iter=4) == 4
    assert first(max_iter=27, s=2, eta=3) == 3  # 27 / 3 and 27 / 9
    assert first(max_iter=27, s=9, eta=3) == 1  # bands below 1 are none


def _sweep() -> Any:
    from pipeline.experiments.sweeps.plan import Sweep

    return Sweep


# W&B's own code


@pytest.mark.parametrize(
    "given",
    [
        {"values": [8, 16, 32]},
        {"values": ["adam", "sgd"], "distribution": "categorical"},
        {"min": 1, "max": 9},
        {"min": 1, "max": 9, "distribution": "int_uniform"},
        {"min": 0.1, "max": 9.0},
        {"min": 0, "max": 9, "distribution": "uniform"},
        {"min": 0.001, "max": 0.1, "distribution": "log_uniform_values"},
    ],
)
def test_wandbs_own_conversion_to_optuna_gives_the_same_distribution(given: dict[str, Any]) -> None:
    theirs = pytest.importorskip("wandb.sdk.sweeps.scheduler.optuna")
    assert parameter(**given).optuna_distribution() == theirs.sweep_parameter_to_distribution(given)


def test_wandbs_agent_makes_of_the_file_a_command_that_trains_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb_agent = pytest.importorskip("wandb.wandb_agent")
    reading = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    path = write_sweep(
        tmp_path,
        parameters={
            **SWEEP["parameters"],
            "schedule": {"values": [{"name": "multi_step", "milestones": [1, 2]}, {"name": "constant"}]},
        },
    )
    values = {
        "optim.lr": 1.25e-05,
        "optim.nesterov": False,
        "schedule": {"name": "multi_step", "milestones": [1, 2]},
    }
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # the agent sets them in its own environment: pytest puts them back
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **given: started.append(given) or _Process())
    agent = wandb_agent.Agent(api=None, queue=None)
    # W&B's agent has no public way to do one trial
    agent._sweep_command = reading.load_sweep_config(str(path))["command"]
    given = {key: {"value": value} for key, value in values.items()}
    for run_id in ("first", "second"):
        agent._command_run({"run_id": run_id, "program": "pipeline", "args": given})

    words = started[1]["command"]
    assert words[:5] == ["/usr/bin/env", "python", "-m", "pipeline", "train"]
    _, arguments = parse(words[4:])
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.setenv(name, started[1]["env"][name])
    config = load_config(arguments.config, arguments.positionals)
    assert config.run_dir == tmp_path / "runs/base-second"  # each trial has a folder of its own
    assert config.tracking.wandb == "online"
    choices = SweepPlan(path).parameters["schedule"].choices
    ours = SweepPlan(path).config(0, {**values, "schedule": choices[0]})
    own = {"run", "tracking", "report"}
    assert config.model_dump(exclude=own) == ours.model_dump(exclude=own)


class _Process:
    """Stands for the process that W&B's agent would start."""


def test_without_an_agent_a_run_is_named_after_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    assert load_config(Path("configs/demo.yaml")).run.name == "demo"
