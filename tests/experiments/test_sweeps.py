"""Sweeps at work: trials that are shared, killed, pruned and resumed; and what is made of them."""

import json
import math
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
from pipeline.common import hardware
from pipeline.common.errors import ConfigError, DataError
from pipeline.config.load import load_config
from pipeline.evaluation.statistics import wilson
from pipeline.experiments import worker_pool
from pipeline.experiments.sweeps import results, sweep, trials
from pipeline.experiments.sweeps.plan import SweepPlan
from pipeline.experiments.sweeps.task import TrialTask
from pipeline.experiments.sweeps.trials import JOURNAL, Trials
from pipeline.experiments.worker_pool import Outcome
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import read_log
from pipeline.training.trainer import train
from tests.helpers import tiny
from tests.helpers.sweeps import SWEEP, write_sweep

BAYES = {"method": "bayes"}


def objective(values: dict[str, Any]) -> float:
    """Best at a learning rate of 0.01, and without Nesterov."""
    return 1 - abs(math.log10(values["optim.lr"]) + 2) / 10 - 0.1 * values["optim.nesterov"]


def study(path: Path, most: int, pruner: str | None = None, name: str = "search") -> Trials:
    """Do trials without any training: each rises to its objective in three epochs."""
    shared = Trials(SweepPlan(path, (f"run.name={name}",)), pruner)
    while claim := shared.take(most):
        value = objective(claim.values)
        ended = any(shared.report(claim.number, epoch, value * epoch / 3) for epoch in (1, 2))
        shared.end(claim.number, "pruned" if ended else "complete", None if ended else value)
        claim.lock.close()
    return shared


def drawn(shared: Trials) -> list[dict[str, Any]]:
    return [dict(trial.params) for trial in shared.all()]


# Trials that are shared


def test_the_draws_are_a_function_of_the_seed_and_of_what_came_before(tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    for folder in (one, two):
        folder.mkdir()
    whole = drawn(study(write_sweep(one, **BAYES), 14))
    study(write_sweep(two, **BAYES), 6)
    assert drawn(study(two / "search.yaml", 14)) == whole  # interrupted after the sixth
    assert len({json.dumps(params) for params in whole}) == 14
    best = max(objective(params) for params in whole)
    assert best > 0.97  # TPE has come near the best, 1.0


def test_the_seed_of_the_base_configuration_is_the_sweeps(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    first, other = (Trials(SweepPlan(path, (f"run.name=s{seed}", f"seed={seed}")), None) for seed in (0, 1))
    assert first.take(1).values != other.take(1).values  # type: ignore[union-attr]


def test_commands_at_once_make_exactly_as_many_trials_as_were_asked_for(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    code = (
        "import sys; from pathlib import Path; from pipeline.experiments.sweeps.plan import Plan\n"
        "from pipeline.experiments.sweeps.trials import Trials\n"
        "shared = Trials(Plan(Path(sys.argv[1])), None)\n"
        "while claim := shared.take(12): shared.end(claim.number, 'complete', 0.5); claim.lock.close()"
    )
    crew = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [process.wait(120) for process in crew] == [0, 0, 0]
    shared = Trials(SweepPlan(path), None)
    assert len(shared.ended()) == len(shared.all()) == 12
    who = [trial.user_attrs["taken"] for trial in shared.all()]
    assert all(len(taken) == 1 for taken in who)
    assert shared.take(12) is None
    assert shared.take(13) is not None


def _holder(path: Path) -> "subprocess.Popen[str]":
    """A process that has taken the first trial of a sweep, and does nothing."""
    code = (
        "import sys, time; from pathlib import Path; from pipeline.experiments.sweeps.plan import Plan\n"
        "from pipeline.experiments.sweeps.trials import Trials\n"
        "claim = Trials(Plan(Path(sys.argv[1])), None).take(2); print(claim.number, flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "0\n"
    return holder


def test_a_trial_of_a_live_process_is_left_alone_and_that_of_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    holder = _holder(path)
    shared = Trials(SweepPlan(path), None)
    values = shared.values(shared.all()[0])
    assert not shared.abandoned()
    second = shared.take(2)
    assert second is not None and second.number == 1
    assert shared.take(2) is None

    holder.kill()
    holder.wait()
    assert shared.abandoned()
    again = shared.take(2)
    assert again is not None
    assert (again.number, again.values) == (0, values)
    assert len(shared.all()) == 2


def test_a_trial_that_kills_its_processes_has_failed_and_one_that_was_stopped_has_not(tmp_path: Path) -> None:
    shared = Trials(SweepPlan(write_sweep(tmp_path)), None)
    for _ in range(5):
        stopped = shared.take(1)
        assert stopped is not None
        shared.give_back(stopped.number)
        stopped.lock.close()
    for _ in range(trials.KILLED_AT_MOST):
        killed = shared.take(1)
        assert killed is not None
        killed.lock.close()  # as the kernel does when the process dies
    assert shared.take(1) is None
    assert shared.ended()[0].user_attrs["outcome"] == "failed"
    assert "3 processes in a row were killed" in shared.ended()[0].user_attrs["why"]


def test_half_a_line_at_the_journals_end_is_taken_off(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    study(path, 2)
    journal = SweepPlan(path).folder / JOURNAL
    with journal.open("ab") as stream:
        stream.write(b'{"op_code": 4, "worker')
    assert len(study(path, 4).ended()) == 4
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_pruning_ends_what_is_below_the_median_or_out_of_the_best_share(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2})
    shared = {name: study(path, 16, name, f"with_{name}") for name in ("median", "hyperband", "none")}
    shared["file"] = study(path, 16)
    states = {name: [one.user_attrs["outcome"] for one in each.all()] for name, each in shared.items()}
    assert states["none"] == ["complete"] * 16
    best: list[float] = []
    for params, state in zip(drawn(shared["none"]), states["median"], strict=True):
        value = objective(params)  # Optuna's median is of the complete trials, once there are five
        assert state == ("pruned" if len(best) >= 5 and value < pd.Series(best).median() else "complete")
        best += [value] if state == "complete" else []
    assert "pruned" in states["median"]
    assert "pruned" in states["hyperband"]
    # Some of its brackets begin later.
    assert states["hyperband"].count("complete") > states["file"].count("complete")
    assert 1 <= states["file"].count("complete") < 8  # at epochs 1 and 2, about half go on


# Trials that are trained, in this process


@pytest.fixture
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "say_into", _nothing)
    monkeypatch.setattr(sweep.workers, "each", _each)


def _nothing(_: Any) -> None:
    """In the place of what would send this process's standard error to a file."""


def _each(coming: Any, jobs: int, gpus: Any) -> Any:
    while task := coming():
        yield task, task.do()


GRID = {"method": "grid", "parameters": {"optim.lr": {"values": [0.02, 1e30, 0.001]}}}


@pytest.mark.usefixtures("_one_process")
def test_a_grid_with_a_rate_that_diverges(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, **GRID)
    found = sweep.sweep(path, None, 1, None, ["train.epochs=2"])
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
    assert found["best"]["number"] == best
    low, high = wilson(round(6 * rows["val_top1"][best]), 6)
    assert (found["val_images"], found["low"], found["high"]) == (6, low, high)
    assert found["within"] == (rows["val_top1"][2 - best] >= low)
    assert found["states"] == {"complete": 2, "diverged": 1}
    assert found["importance"] is None
    assert json.loads((folder / "results.json").read_text()) == found
    said = capsys.readouterr().err
    assert "importance.png is not drawn" in said
    assert "the test split was not read" in said
    assert not list(folder.glob("*/test_reads.jsonl"))
    for name in ("history.png", "parallel_coordinates.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")

    before = (folder / JOURNAL).read_bytes()
    assert sweep.sweep(path, 7, 1, None, ["train.epochs=2"]) == found  # the grid is done
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
    first, second = (TrialTask(plan, None, 2).do().result for _ in range(2))
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
    shared._draw = lambda _: {"optim.batch_size": 8, "optim.effective_batch_size": 4}  # type: ignore[method-assign]
    claim = shared.take(1)
    assert claim is not None
    claim.lock.close()
    ended = TrialTask(SweepPlan(path), None, 1).do()
    assert ended.result["outcome"] == "failed"
    assert "effective_batch_size 4 is below batch_size 8" in ended.result["why"]


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
    sweep._define(SweepPlan(path), None)
    holder = _holder(path)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        holder.kill()
        holder.wait()

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    found = sweep.sweep(path, None, 1, None, [])
    assert found["states"] == {"complete": 2}
    assert waited == [sweep.POLL_S]
    rows = pd.read_csv(tmp_path / "runs/sweeps/search/trials.csv")
    assert rows["processes"].tolist() == [2, 1]


def test_what_can_be_mended_leaves_the_trial_to_the_same_command(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, full = write_sweep(tmp_path, **GRID), DataError("the disk is full")

    def each(coming: Any, jobs: int, gpus: Any) -> Any:
        task = coming()
        with pytest.raises(DataError):
            task.do()
        yield task, Outcome("failed", str(full))

    with monkeypatch.context() as patched:
        patched.setattr(worker_pool, "say_into", _nothing)
        patched.setattr(worker_pool, "each", each)
        patched.setattr("pipeline.training.trainer.train", _raises(full))
        with pytest.raises(
            DataError, match="the disk is full; when that is mended, the same command goes on"
        ):
            sweep.sweep(path, None, 1, None, [])
    trials_of = Trials(SweepPlan(path), None)
    assert trials_of.abandoned()
    assert trials_of.all()[0].user_attrs["taken"] == []
    claim = trials_of.take(3)
    assert claim is not None and claim.number == 0


def _raises(error: Exception) -> Any:
    def train(*_: Any, **__: Any) -> None:
        raise error

    return train


def test_a_bug_in_a_trial_is_a_bug_of_the_sweep(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def each(coming: Any, jobs: int, gpus: Any) -> Any:
        yield coming(), Outcome("bug", "Traceback ...\nKeyError: 'a bug'")

    monkeypatch.setattr(worker_pool, "each", each)
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
    found = sweep.sweep(stages, None, 1, None, ["train.epochs=1"])
    lr = found["stages"][0]["best"]["optim.lr"]
    for number in (0, 1):
        config = load_config(tmp_path / f"runs/sweeps/s1/trial-00{number}/config.yaml")
        assert (config.optim.lr, config.optim.momentum) == (lr, (0.5, 0.8)[number])


# Trials in processes that are killed


def wait_for(holds: Any, what: str) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def test_killed_and_stopped_a_sweep_goes_on_and_its_best_is_had_again(birds: Path, tmp_path: Path) -> None:
    """12 trials in the acceptance, 3 here; docs/sweeps.md has the figures of the large one."""
    path = write_sweep(tmp_path, **BAYES, run_cap=3)
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
    assert "its process has ended with code -9" in gone[-1]

    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = pd.read_csv(folder / "trials.csv")
    assert found["states"] == {"complete": 3}
    assert rows["number"].tolist() == [0, 1, 2]
    assert rows["epochs"].tolist() == [12] * 3
    resumed = (folder / "trial-001/output.log").read_text()
    starts = [line.split("step ")[1] for line in resumed.splitlines() if line.startswith("run ")]
    assert starts[0] == "0 of 60" and len(starts) >= 2
    assert all(not start.startswith("0 ") for start in starts[1:])  # from its checkpoint
    for number in range(3):
        steps = [r["step"] for r in read_log(folder / f"trial-00{number}/log.jsonl") if r["kind"] == "epoch"]
        assert steps == list(range(5, 61, 5))  # each once, in order

    number, threads = found["best"]["number"], torch.get_num_threads()
    torch.set_num_threads(1)  # as in the sweep's processes
    alone = train(load_config(folder / "best.yaml"))
    torch.set_num_threads(threads)
    assert alone["best_val_top1"] == found["best"]["val_top1"] == rows["val_top1"].max()
    for name in ("best.pt", "last.pt"):
        one, other = (
            run_dir / "checkpoints" / name
            for run_dir in (tmp_path / "runs/search-best", folder / f"trial-00{number}")
        )
        assert tiny.same_weights(one, other)


# Small parts


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorded:
        def __init__(self, gpu: str | None) -> None:
            self.gpu, self.task = gpu, None

        def give(self, task: Any) -> None:
            self.task = task

    monkeypatch.setattr(worker_pool, "Worker", Recorded)
    for given, expected in ((["0", "GPU-5"], ["0", "GPU-5", "0"]), ([], [None] * 3)):
        crew: list[Any] = []
        worker_pool._hand_out(lambda: "a task", crew, 3, given)  # type: ignore[arg-type,return-value]
        assert [worker.gpu for worker in crew] == expected
    for visible, expected in (("0, GPU-5", ["0", "GPU-5"]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert hardware.gpus() == expected


@pytest.mark.parametrize(
    ("name", "goal", "best"), [("val_top1", "maximize", 0.9), ("val_loss", "minimize", 0.5)]
)
def test_a_trials_value_is_its_best_over_the_epochs(
    tmp_path: Path, name: str, goal: str, best: float
) -> None:
    plan = SweepPlan(write_sweep(tmp_path, metric={"name": f"epoch/{name}", "goal": goal}))
    assert results.value(plan, 0) is None
    values = [(0.2, 1.5), (0.9, 0.6), (0.7, 0.5), (0.8, None)]
    lines = [{"kind": "epoch", "step": 1, "val_top1": top1, "val_loss": loss} for top1, loss in values]
    plan.run_dir(0).mkdir(parents=True)
    (plan.run_dir(0) / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert results.value(plan, 0) == best


def test_importance_finds_the_parameter_that_matters(tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        method="random",
        parameters={**SWEEP["parameters"], "optim.momentum": {"min": 0.1, "max": 0.9}},
    )
    assert results.importance(study(path, 9)) is None
    shares = results.importance(study(path, 40))
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == ["optim.nesterov", "optim.lr", "optim.momentum"]  # as `objective` has it
    assert shares["optim.momentum"] < 0.1


def test_importing_the_command_line_does_not_import_optuna() -> None:
    code = "import sys, pipeline.cli.main; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_jobs_and_trials_have_to_be_at_least_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--jobs", "--trials"):
        assert main.run(["sweep", str(write_sweep(tmp_path)), option, "0"]) == 2
        assert f"{option} 0: has to be at least 1" in capsys.readouterr().err
