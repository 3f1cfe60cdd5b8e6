"""Studies: the plan, the runs side by side, what is made of them."""

import json
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.cli import main
from pipeline.common import files
from pipeline.common.errors import ConfigError
from pipeline.config.load import load_config
from pipeline.experiments import worker_pool
from pipeline.experiments.studies import figures, plan, results
from pipeline.experiments.studies import study as study_module
from pipeline.experiments.studies.plan import StudyPlan
from pipeline.runs.log import best_record
from pipeline.training.trainer import train
from tests.helpers import processes, ranks, tiny

STUDY: dict[str, Any] = {
    "title": "Which is it?",
    "show": "curves",
    "seeds": [0, 1],
    "arms": {"slow": ["optim.lr=0.001"], "tuned": ["train.epochs=2"]},
    "tune_lr": {"tuned": [1e30, 0.02]},
}


def write(folder: Path, **changes: Any) -> Path:
    """A study file of the tiny job, whose runs live in FOLDER/runs."""
    base = tiny.config(folder, tiny.own_data(folder), "tracking.log_every_steps=1").model_dump(mode="json")
    files.write_json(folder / "base.yaml", base | {"run": {"root": str(folder / "runs"), "name": None}})
    files.write_json(folder / "which.yaml", STUDY | {"base": str(folder / "base.yaml")} | changes)
    return folder / "which.yaml"


@pytest.fixture(scope="module")
def done(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study: tests read it and do not write it."""
    folder = tmp_path_factory.mktemp("study")
    assert main.run(["study", str(write(folder)), "--jobs", "2"]) == 0
    return folder


def study_of(folder: Path) -> Path:
    return folder / "runs/studies/which"


# The plan


def test_arms_conditions_and_seeds_become_ordinary_configurations(tmp_path: Path) -> None:
    path = write(
        tmp_path, tune_lr={}, conditions={"b4": ["optim.batch_size=4"], "b8": ["optim.batch_size=8"]}
    )
    members = StudyPlan(path, ["optim.momentum=0.5"]).members({})
    assert [member.name for member in members] == [
        f"{arm}-{condition}-seed{seed}"
        for condition in ("b4", "b8")
        for arm in ("slow", "tuned")
        for seed in (0, 1)
    ]
    config = members[5].config
    assert (config.seed, config.optim.lr, config.optim.batch_size) == (1, 0.001, 8)
    assert (config.optim.momentum, config.train.epochs, members[6].config.train.epochs) == (0.5, 3, 2)
    assert config.run_dir == study_of(tmp_path) / "slow-b8-seed1"


def test_a_learning_rate_that_is_tuned_is_that_of_the_last_phase(tmp_path: Path) -> None:
    phases = "optim.phases=[{name: adam, lr: 0.001, until: 1}, {name: sgd, lr: 0.5}]"
    path = write(tmp_path, arms={"both": [phases]}, tune_lr={"both": [0.1, 0.2]})
    tries = StudyPlan(path).tuning_members()
    assert [member.name for member in tries] == ["tune-both-lr0.1", "tune-both-lr0.2"]
    assert [[phase.lr for phase in one.config.optim.phases] for one in tries] == [[0.001, 0.1], [0.001, 0.2]]
    assert [one.config.optim.phases[1].lr for one in StudyPlan(path).members({"both": 0.2})] == [0.2, 0.2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"armz": {}}, "which.yaml: armz: unknown key; did you mean arms?"),
        ({"show": "curve"}, "did you mean curves?"),
        ({"seeds": [0, 0]}, "seeds: [0, 0] holds one twice"),
        ({"seeds": []}, "seeds: [] is not allowed"),
        ({"arms": {}}, "arms: give at least one, each with a name"),
        ({"arms": {"a b": []}}, "arms: 'a b' may have only letters, digits, _ and ."),
        ({"arms": {"one": []}}, "tune_lr: tuned is not one of the arms, one"),
        ({"conditions": {"a": [], "b": []}}, "tune_lr: an arm is tuned once; give no conditions"),
        ({"base": "no.yaml"}, "no.yaml: no such configuration file"),
        ({"arms": {"tuned": ["optim.lrr=1"]}}, "which.yaml: arm tuned: "),
    ],
)
def test_a_wrong_study_is_one_sentence_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert main.run(["study", str(write(tmp_path, **changes))]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_unknown_study_names_the_nearest_and_all_means_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["study", "residul"]) == 2
    assert "did you mean residual?" in capsys.readouterr().err
    assert main.run(["study", "residual", "--jobs", "0"]) == 2
    assert "--jobs 0: has to be at least 1" in capsys.readouterr().err
    assert plan.find("all") == sorted(plan.FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", sorted(plan.FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_are_valid_and_short(path: Path) -> None:
    given = StudyPlan(path)
    study = given.study
    members = given.members({})
    assert len(members) == len(study.arms) * len(study.conditions) * len(study.seeds)
    assert len({member.name for member in members}) == len(members)
    assert len(set(study.seeds)) >= 3
    assert len(path.read_text().splitlines()) <= 30
    name = path.stem if path in plan.find("all") else path  # one that needs a download is named by its path
    assert f"make study NAME={name}\n" in path.read_text()
    assert (
        given.tuning_members() == [] or len({len(lrs) for lrs in study.tune_lr.values()}) == 1
    )  # the same effort


# The runs


def test_each_run_is_trained_and_reads_test_once(done: Path) -> None:
    for name in ("slow-seed0", "slow-seed1", "tuned-seed0", "tuned-seed1"):
        folder = study_of(done) / name
        assert (folder / "output.log").read_text().count("done   best epoch") == 1
        assert len((folder / "test_reads.jsonl").read_text().splitlines()) == 1
        assert json.loads((folder / "eval/test/metrics.json").read_text())["n"] == 18
    assert not list(study_of(done).glob("tune-*/test_reads.jsonl"))


def test_a_run_is_bit_for_bit_what_its_saved_configuration_gives_by_itself(
    done: Path, tmp_path: Path
) -> None:
    saved = study_of(done) / "tuned-seed1"
    config = load_config(saved / "config.yaml", [f"run.root={tmp_path}"])
    assert ranks.run(train, 1, config)[0].value["step"] == 10  # with one thread, as a study's runs
    for name in ("best.pt", "last.pt"):
        assert tiny.same_weights(config.run_dir / "checkpoints" / name, saved / "checkpoints" / name)


def test_the_learning_rate_is_chosen_on_validation_and_not_where_training_diverged(done: Path) -> None:
    tried = pd.read_csv(study_of(done) / "tuned.csv")
    assert tried["lr"].tolist() == [1e30, 0.02]
    assert tried["val_top1"].isna().tolist() == [True, False]
    runs = pd.read_csv(study_of(done) / "runs.csv").set_index(["arm", "seed"])
    assert runs["lr"].tolist() == [0.001, 0.001, 0.02, 0.02]
    assert runs["steps"].tolist() == [15, 15, 10, 10]


def test_the_table_holds_what_the_runs_evaluations_hold(done: Path) -> None:
    top1 = [
        json.loads((study_of(done) / f"slow-seed{seed}/eval/test/metrics.json").read_text())["top1"]
        for seed in (0, 1)
    ]
    table = pd.read_csv(study_of(done) / "table.csv").set_index(["arm", "measure"])
    assert table.loc[("slow", "test_top1"), "mean"] == pytest.approx(sum(top1) / 2)
    last = [line for line in tiny.records(study_of(done) / "slow-seed0/log.jsonl") if line["kind"] == "epoch"]
    runs = pd.read_csv(study_of(done) / "runs.csv")
    assert runs["train_error"][0] == pytest.approx(1 - last[-1]["train_top1"])
    assert runs["val_top1"][0] == max(line["val_top1"] for line in last)
    assert (study_of(done) / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "| tuned - slow | 2 |" in (study_of(done) / "table.md").read_text()


def test_a_study_that_is_done_is_only_shown_again(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(study_of(done).glob("*/checkpoints/*.pt"))
    before = [path.stat().st_mtime_ns for path in paths]
    assert main.run(["study", str(done / "which.yaml")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["runs"], summary["tries"], summary["folder"]) == (4, 2, str(study_of(done)))
    assert [path.stat().st_mtime_ns for path in paths] == before


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on_to_the_same_weights(done: Path, tmp_path: Path) -> None:
    path = write(tmp_path, arms={"slow": ["optim.lr=0.001"]}, tune_lr={}, seeds=[0])
    log = study_of(tmp_path) / "slow-seed0/log.jsonl"
    command = ["study", str(path), "--jobs", "1"]
    begun = lambda: log.is_file() and '"step": 4,' in log.read_text()  # noqa: E731
    assert processes.interrupt(command, begun, signal.SIGTERM) == 75
    saved = study_of(tmp_path) / "slow-seed0/checkpoints"
    assert main.run(["study", str(path), "--jobs", "1"]) == 0
    for name in ("best.pt", "last.pt"):
        assert tiny.same_weights(saved / name, study_of(done) / "slow-seed0/checkpoints" / name)
    assert len((saved.parent / "test_reads.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_study_that_was_killed_leaves_no_run_behind(birds: Path, tmp_path: Path) -> None:
    path = write(tmp_path, arms={"slow": ["optim.lr=0.001", "train.epochs=2000"]}, tune_lr={}, seeds=[0])
    log = study_of(tmp_path) / "slow-seed0/log.jsonl"
    command = ["study", str(path), "--jobs", "1"]
    assert processes.interrupt(command, log.is_file, signal.SIGKILL) == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while "stopped by SIGTERM" not in (log.parent / "output.log").read_text():  # by the worker itself
        assert time.monotonic() < deadline, "the run goes on without its study"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_broken_arm_is_one_sentence_with_its_log_and_the_others_are_done(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {"good": ["train.max_steps=1"], "broken": ["model.name=resnet9999"]}
    path = write(tmp_path, arms=arms, tune_lr={}, seeds=[0])
    assert main.run(["study", str(path), "--jobs", "1"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    log = study_of(tmp_path) / "broken-seed0/output.log"
    assert last.startswith(
        "error: which: 1 of 2 runs failed, the first: broken-seed0: model.name: timm has no"
    )
    assert str(log) in last
    assert "error: model.name" in log.read_text()
    assert (study_of(tmp_path) / "good-seed0/eval/test/metrics.json").is_file()


def test_a_bug_in_a_run_is_a_bug_of_the_study_and_the_others_are_done(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "run_tasks", _with_a_bug)
    with pytest.raises(RuntimeError, match="(?s)slow-seed0, in another process.*KeyError"):
        study_module.study(str(write(tmp_path, tune_lr={})), 1, [])
    stamps = [path.parent.name for path in study_of(tmp_path).glob("*/study.json")]
    assert sorted(stamps) == ["slow-seed1", "tuned-seed0", "tuned-seed1"]


def _with_a_bug(next_task: Any, _places: Any) -> Any:
    yield next_task(), worker_pool.Outcome("bug", "Traceback ...\nKeyError: 'a bug'")
    while task := next_task():
        yield task, worker_pool.Outcome("done")


# What is made of them


def frame() -> pd.DataFrame:
    """Two arms under one condition with three seeds; the measure of b is that of a + 1, 2 and 3."""
    values = {"a": (1.0, 2.0, 3.0), "b": (2.0, 4.0, 6.0)}
    return pd.DataFrame(
        {"condition": "c", "arm": arm, "seed": seed, "test_top1": value}
        for arm, given in values.items()
        for seed, value in enumerate(given)
    )


def test_the_interval_of_a_mean_is_students() -> None:
    half = 4.302652729911275 / 3**0.5  # t of 2 degrees of freedom at 97.5 %
    interval = results.mean_interval([1.0, 2.0, 3.0])
    assert interval == {
        "n": 3,
        "mean": 2.0,
        "sd": 1.0,
        "low": pytest.approx(2 - half),
        "high": pytest.approx(2 + half),
    }
    assert results.mean_interval([0.5]) == {"n": 1, "mean": 0.5, "sd": None, "low": None, "high": None}


def test_tables_and_differences_by_value() -> None:
    table = results.summary_table(frame(), ["test_top1"])
    assert table[["arm", "n", "mean", "sd"]].to_numpy().tolist() == [["a", 3, 2.0, 1.0], ["b", 3, 4.0, 2.0]]
    differences = results.differences(frame(), ["test_top1"])
    assert differences[["arm", "mean", "sd"]].to_numpy().tolist() == [["b - a", 2.0, 1.0]]
    assert results.markdown(differences) == (
        "| condition | arm | n | test top1 |\n| --- | --- | --- | --- |\n"
        "| c | b - a | 3 | 2.000 ± 1.000 (-0.484 to 4.484) |\n"
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (0.5, "0.500"), (-0.25, "-0.250"), (3e-16, "3.0e-16"), (5e4, "5.0e+04")],
)
def test_figures_in_tables(value: float, words: str) -> None:
    assert results.format_number(value) == words


def test_the_lines_of_the_figures_are_means_over_the_seeds(done: Path) -> None:
    members = StudyPlan(done / "which.yaml").members({"tuned": 0.02})[:2]
    logs = [results.read_log(member) for member in members]
    of_val = figures.validation(members, "val_loss")
    epochs = [[line for line in log if line["kind"] == "epoch"] for log in logs]
    assert of_val.index.tolist() == [5, 10, 15]
    for number, step in enumerate((5, 10, 15)):
        values = [of_run[number]["val_loss"] for of_run in epochs]
        assert of_val.loc[step, "mean"] == pytest.approx(sum(values) / 2)
        assert of_val.loc[step, ["min", "max"]].tolist() == [min(values), max(values)]
    steps = figures.smoothed_training(members, "loss")
    first = [next(line["loss"] for line in log if line["kind"] == "step") for log in logs]
    assert steps.loc[1, "mean"] == pytest.approx(sum(first) / 2)  # nothing before it to smooth with
    seconds = figures.core_seconds(members)
    assert seconds.index.tolist() == list(range(1, 16))
    assert seconds.is_monotonic_increasing


@pytest.mark.parametrize("show", ["depth", "optimizers", "curves"])
@pytest.mark.parametrize("steps", ["some", "none"])
def test_figures_are_drawn_without_a_warning_also_of_runs_that_log_no_step(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, show: str, steps: str
) -> None:
    members = StudyPlan(done / "which.yaml").members({"tuned": 0.02})
    runs = pd.read_csv(study_of(done) / "runs.csv", keep_default_na=False)
    if steps == "none":
        logs = {m.name: [r for r in results.read_log(m) if r["kind"] != "step"] for m in members}
        monkeypatch.setattr(results, "read_log", lambda member: logs[member.name])
    path = tmp_path / "figure.png"
    draw: Any = getattr(figures, show)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(path, "a title", members, *([runs] if show == "depth" else []))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_validation_chooses_as_the_run_does(done: Path) -> None:
    tied = [
        {"kind": "epoch", "step": 1, "val_top1": 0.5, "val_loss": 1.0},
        {"kind": "val", "step": 2, "val_top1": 0.5, "val_loss": 0.9},
        {"kind": "epoch", "step": 3, "val_top1": 0.4, "val_loss": 0.1},
        {"kind": "step", "step": 4, "loss": 0.1},
    ]
    assert best_record(tied)["step"] == 2


def test_a_study_needs_a_file_that_is_there() -> None:
    with pytest.raises(ConfigError, match="is not a study file"):
        plan.find("elsewhere/none.yaml")
