"""Sweeps that train: in this process, and in processes that are killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipeline.cli import main
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.evaluation.statistics import wilson
from pipeline.experiments import worker_pool
from pipeline.experiments.sweeps import definition, results, sweep
from pipeline.experiments.sweeps.plan import SweepPlan
from pipeline.experiments.sweeps.task import TrialTask
from pipeline.experiments.sweeps.trials import JOURNAL, Trials
from pipeline.experiments.worker_pool import Outcome
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import read_log
from pipeline.training.trainer import train
from tests.helpers import tiny
from tests.helpers.sweeps import GRID, claiming_process, write_sweep


@pytest.fixture
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run tasks in this process, and leave its standard error alone."""
    monkeypatch.setattr(worker_pool, "redirect_output", lambda _: None)
    monkeypatch.setattr(worker_pool, "run_tasks", run_here)


def run_here(next_task: Any, *_: Any) -> Any:
    while task := next_task():
        yield task, task.run()


@pytest.mark.usefixtures("_one_process")
def test_a_grid_with_a_rate_that_diverges(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, **GRID)
    summary = sweep.sweep(path, None, 1, None, ["train.epochs=2"])
    folder = tmp_path / "runs/sweeps/search"
    rows = pd.read_csv(folder / "trials.csv")
    assert rows["state"].tolist() == ["complete", "diverged", "complete"]
    assert rows["optim.lr"].tolist() == [0.02, 1e30, 0.001]
    assert "training has diverged" in rows["why"][1]
    for number in (0, 2):
        epochs = [r for r in read_log(folder / f"trial-00{number}/log.jsonl") if r["kind"] == "epoch"]
        assert rows["val_top1"][number] == max(record["val_top1"] for record in epochs)
        assert rows["epochs"][number] == 2
    best = max((0, 2), key=lambda number: (rows["val_top1"][number], -number))
    assert summary["best"]["number"] == best
    low, high = wilson(round(6 * rows["val_top1"][best]), 6)
    assert (summary["val_images"], summary["low"], summary["high"]) == (6, low, high)
    assert summary["within"] == (rows["val_top1"][2 - best] >= low)
    assert summary["states"] == {"complete": 2, "diverged": 1}
    assert summary["importance"] is None
    assert json.loads((folder / "results.json").read_text()) == summary
    printed = capsys.readouterr().err
    assert "importance.png is not drawn" in printed
    assert "the test split was not read" in printed
    assert not list(folder.glob("*/test_reads.jsonl"))
    for name in ("history.png", "parallel_coordinates.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")

    before = (folder / JOURNAL).read_bytes()
    assert sweep.sweep(path, 7, 1, None, ["train.epochs=2"]) == summary  # the grid is done
    assert (folder / JOURNAL).read_bytes() == before
    with pytest.raises(ConfigError, match=r"is of another sweep \(config.train.epochs 2 -> 3\)"):
        sweep.sweep(path, None, 1, None, ["train.epochs=3"])
    with pytest.raises(ConfigError, match='pruner null -> "median"'):
        sweep.sweep(path, None, 1, "median", ["train.epochs=2"])


@pytest.mark.usefixtures("_one_process")
def test_a_pruned_trial_stops_after_that_epoch_and_is_not_the_best(birds: Path, tmp_path: Path) -> None:
    rule = {"type": "hyperband", "min_iter": 1, "eta": 2}
    metric = {"name": "epoch/val_loss", "goal": "minimize"}
    rates = {"optim.lr": {"values": [0.02, 1e-6]}}
    path = write_sweep(tmp_path, method="grid", parameters=rates, metric=metric, early_terminate=rule)
    plan = SweepPlan(path)
    first, second = (TrialTask(plan, None, 2).run().result for _ in range(2))
    assert (first["outcome"], second["outcome"], second["number"]) == ("complete", "pruned", 1)
    ahead, behind = (results.epochs(plan, number) for number in (0, 1))
    assert behind[0]["val_loss"] > ahead[0]["val_loss"]
    assert (len(ahead), len(behind)) == (3, 1)
    assert second["value"] == behind[0]["val_loss"]
    state = RunDirectory(plan.run_dir(1)).read_status()
    assert state is not None
    assert (state.state, state.why) == ("stopped", "pruned after epoch 1 of 3: others were better there")
    assert results.best(plan, results.table(Trials(plan, None)))["number"] == 0  # type: ignore[index]


@pytest.mark.usefixtures("_one_process")
def test_values_that_do_not_fit_together_are_a_failed_trial(birds: Path, tmp_path: Path) -> None:
    sizes = {"optim.batch_size": {"values": [4, 8]}, "optim.effective_batch_size": {"values": [8, 4]}}
    path = write_sweep(tmp_path, method="random", parameters=sizes)
    shared = Trials(SweepPlan(path), None)
    shared.draw_parameters = lambda _: {"optim.batch_size": 8, "optim.effective_batch_size": 4}  # type: ignore[method-assign]
    claim = shared.claim(1)
    assert claim is not None
    claim.lock.close()
    ended = TrialTask(SweepPlan(path), None, 1).run()
    assert ended.result["outcome"] == "failed"
    assert "effective_batch_size 4 is below batch_size 8" in ended.result["why"]


@pytest.mark.usefixtures("_one_process")
def test_a_model_that_cannot_be_trained_is_a_failed_trial_and_the_sweep_goes_on(
    birds: Path, tmp_path: Path
) -> None:
    models = {"model.name": {"values": ["vit_tiny_patch16_224", "test_resnet"]}}
    summary = sweep.sweep(write_sweep(tmp_path, method="grid", parameters=models), None, 1, None, [])
    assert summary["states"] == {"failed": 1, "complete": 1}
    rows = pd.read_csv(tmp_path / "runs/sweeps/search/trials.csv")
    assert "Input height (32) doesn't match model (224)" in rows["why"][0]


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("error", [KeyError("a bug at 0x7f12"), DataError("no picture of class 3; mend it")])
def test_a_trial_that_fails_twice_alike_has_failed_and_the_sweep_goes_on(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = write_sweep(tmp_path, **GRID)

    def train_but_the_first(config: Config, watch: Any) -> dict[str, Any]:
        if config.run.name == "trial-000":
            raise error
        return train(config, watch)

    monkeypatch.setattr("pipeline.training.trainer.train", train_but_the_first)
    with pytest.raises(type(error)):
        sweep.sweep(path, None, 1, None, ["train.epochs=1"])
    assert [trial.user_attrs["taken"] for trial in Trials(SweepPlan(path), None).all()] == [[]]
    summary = sweep.sweep(path, None, 1, None, ["train.epochs=1"])
    assert summary["states"] == {"failed": 1, "diverged": 1, "complete": 1}
    rows = pd.read_csv(tmp_path / "runs/sweeps/search/trials.csv")
    assert rows["why"][0].startswith("twice: ")
    assert rows["why"].notna().tolist() == [True, True, False]


def test_only_what_ends_a_trial_alike_under_another_command_counts(tmp_path: Path) -> None:
    shared = Trials(SweepPlan(write_sweep(tmp_path)), None)
    claim = shared.claim(1)
    assert claim is not None
    claim.lock.close()
    assert not shared.fails_again(0, "KeyError: 'x' at 0x7f", "first command")
    assert not shared.fails_again(0, "KeyError: 'x' at 0x80", "first command")
    assert not shared.fails_again(0, "no picture of class 3", "second command")
    assert shared.fails_again(0, "no picture of class 17", "third command")


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOENT])
def test_what_the_system_refuses_is_no_failure_of_the_trial(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = write_sweep(tmp_path, **GRID)
    monkeypatch.setattr("pipeline.training.trainer.train", _raises(OSError(number, "no", "/full")))
    for _ in range(3):
        with pytest.raises(OSError, match="no"):
            sweep.sweep(path, None, 1, None, [])
    assert Trials(SweepPlan(path), None).finished() == []


@pytest.mark.usefixtures("_one_process")
def test_a_sweep_without_a_complete_trial_says_so(birds: Path, tmp_path: Path) -> None:
    path = write_sweep(tmp_path, **GRID | {"parameters": {"optim.lr": {"values": [1e29, 1e30]}}})
    with pytest.raises(DataError, match=r"none of its trials was completed \(2 diverged\)"):
        sweep.sweep(path, None, 1, None, [])
    assert not (tmp_path / "runs/sweeps/search/best.yaml").exists()


@pytest.mark.usefixtures("_one_process")
def test_a_command_without_work_takes_over_what_another_ones_process_leaves(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep(tmp_path, run_cap=2)
    definition.fix_definition(SweepPlan(path), None)
    holder = claiming_process(path)
    waited: list[float] = []
    real_sleep = time.sleep

    def sleep(seconds: float) -> None:
        if seconds != sweep.POLL_S:  # of another module, which waits for a process of its own
            real_sleep(seconds)
            return
        waited.append(seconds)
        holder.kill()
        holder.wait()

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    summary = sweep.sweep(path, None, 1, None, [])
    assert summary["states"] == {"complete": 2}
    assert waited == [sweep.POLL_S]
    rows = pd.read_csv(tmp_path / "runs/sweeps/search/trials.csv")
    assert rows["processes"].tolist() == [2, 1]


def test_what_can_be_mended_leaves_the_trial_to_the_same_command(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, full = write_sweep(tmp_path, **GRID), DataError("the disk is full")

    def fail(next_task: Any, *_: Any) -> Any:
        task = next_task()
        with pytest.raises(DataError):
            task.run()
        yield task, Outcome("failed", str(full))

    with monkeypatch.context() as patched:
        patched.setattr(worker_pool, "redirect_output", lambda _: None)
        patched.setattr(worker_pool, "run_tasks", fail)
        patched.setattr("pipeline.training.trainer.train", _raises(full))
        with pytest.raises(DataError, match="the disk is full; once that is fixed, the same command resumes"):
            sweep.sweep(path, None, 1, None, [])
    trials_of = Trials(SweepPlan(path), None)
    assert len(trials_of.abandoned()) == 1
    assert trials_of.all()[0].user_attrs["taken"] == []
    claim = trials_of.claim(3)
    assert claim is not None and claim.number == 0


def _raises(error: Exception) -> Any:
    def train(*_: Any, **__: Any) -> None:
        raise error

    return train


def test_a_bug_in_a_trial_is_a_bug_of_the_sweep(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_by_a_bug(next_task: Any, *_: Any) -> Any:
        yield next_task(), Outcome("bug", "Traceback ...\nKeyError: 'a bug'")

    monkeypatch.setattr(worker_pool, "run_tasks", end_by_a_bug)
    with pytest.raises(RuntimeError, match="(?s)search, in another process.*KeyError"):
        sweep.sweep(write_sweep(tmp_path, **GRID), None, 1, None, [])


@pytest.mark.usefixtures("_one_process")
def test_a_stage_begins_with_the_best_of_the_stage_before(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = tmp_path / "stages"
    stages.mkdir()
    parameters = [{"optim.lr": {"values": [0.02, 1e-6]}}, {"optim.momentum": {"values": [0.5, 0.8]}}]
    for number, searched in enumerate(parameters):
        path = write_sweep(tmp_path, method="grid", parameters=searched)
        text = path.read_text()
        if number:
            text = text.replace(str(tmp_path / "base.yaml"), str(tmp_path / "runs/sweeps/s0/best.yaml"))
        (stages / f"s{number}.yaml").write_text(text)
    summary = sweep.sweep(stages, None, 1, None, ["train.epochs=1"])
    lr = summary["stages"][0]["best"]["optim.lr"]
    for number in (0, 1):
        config = load_config(tmp_path / f"runs/sweeps/s1/trial-00{number}/config.yaml")
        assert (config.optim.lr, config.optim.momentum) == (lr, (0.5, 0.8)[number])


def wait_for(holds: Any, what: str) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_and_stopped_a_sweep_goes_on_and_its_best_is_had_again(birds: Path, tmp_path: Path) -> None:
    """12 trials in the acceptance, 3 here; docs/sweeps.md has the figures of the large one."""
    path = write_sweep(tmp_path, method="bayes", run_cap=3)
    words = [sys.executable, "-m", "pipeline", "sweep", str(path), "--jobs", "2", "train.epochs=12"]
    folder = tmp_path / "runs/sweeps/search"

    def begun(number: int, epoch: int) -> bool:
        log = folder / f"trial-00{number}/log.jsonl"
        return log.is_file() and f'"epoch": {epoch},' in log.read_text()

    command = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: begun(1, 2), "the second trial begins")
    killed = json.loads((folder / "trial-001/status.json").read_text())["pid"]
    os.kill(killed, signal.SIGKILL)
    gone: list[str] = []
    wait_for(lambda: gone.append(command.stderr.readline()) or "worker is gone" in gone[-1], "it is noticed")
    command.send_signal(signal.SIGTERM)
    assert command.wait(120) == 75
    assert "its process ended with code -9" in gone[-1]

    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    rows = pd.read_csv(folder / "trials.csv")
    assert summary["states"] == {"complete": 3}
    assert rows["number"].tolist() == [0, 1, 2]
    assert rows["epochs"].tolist() == [12] * 3
    resumed = (folder / "trial-001/output.log").read_text()
    starts = [line.split("step ")[1] for line in resumed.splitlines() if line.startswith("run ")]
    assert starts[0] == "0 of 60" and len(starts) >= 2
    assert all(not start.startswith("0 ") for start in starts[1:])  # from its checkpoint
    for number in range(3):
        steps = [r["step"] for r in read_log(folder / f"trial-00{number}/log.jsonl") if r["kind"] == "epoch"]
        assert steps == list(range(5, 61, 5))  # each once, in order

    number, threads = summary["best"]["number"], torch.get_num_threads()
    torch.set_num_threads(1)  # as in the sweep's processes
    alone = train(load_config(folder / "best.yaml"))
    torch.set_num_threads(threads)
    assert alone["best_val_top1"] == summary["best"]["val_top1"] == rows["val_top1"].max()
    for name in ("best.pt", "last.pt"):
        one, other = (
            run_dir / "checkpoints" / name
            for run_dir in (tmp_path / "runs/search-best", folder / f"trial-00{number}")
        )
        assert tiny.same_weights(one, other)


def test_importing_the_command_line_does_not_import_optuna() -> None:
    code = "import sys, pipeline.cli.main; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_jobs_and_trials_have_to_be_at_least_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--jobs", "--trials"):
        assert main.run(["sweep", str(write_sweep(tmp_path)), option, "0"]) == 2
        assert f"{option} 0: has to be at least 1" in capsys.readouterr().err
