"""`plumage repeat`: one recipe with several seeds, one table; two of them are compared seed by seed."""

import json
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from pipeline.cli import main
from pipeline.cli.verbs.many_runs import seeds_of
from pipeline.common import files
from pipeline.evaluation import statistics
from pipeline.evaluation.compare import compare_runs
from pipeline.experiments import worker_pool
from pipeline.experiments.studies import repeat
from pipeline.experiments.worker_pool import Outcome, Places
from pipeline.runs.directory import RunDirectory
from tests.helpers import tiny


@pytest.fixture(scope="module", autouse=True)
def _in_this_process() -> Iterator[None]:
    """No worker processes: `test_studies` has those, and each takes seconds to start."""

    def run_tasks(next_task: Callable[[], Any], _places: Places) -> Iterator[tuple[Any, Outcome]]:
        while task := next_task():
            yield task, worker_pool._run(task, 1)  # private: what a worker does with a task

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_pool, "run_tasks", run_tasks)
        patch.setattr(worker_pool, "redirect_output", lambda _log: None)
        yield


@pytest.fixture(scope="module")
def done(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished repeats of two seeds, slow and fast: tests read it and do not write it."""
    folder = tmp_path_factory.mktemp("repeat")
    base = tiny.config(folder, tiny.own_data(folder), "train.max_steps=2").model_dump(mode="json")
    samples = pd.read_csv(tiny.samples_file())
    tested = samples[samples["split"] == "test"]["id"]
    (folder / "cleaned.csv").write_text(f"id,label\n{tested.iloc[0]},drop\n")
    base |= {"run": {"root": str(folder / "runs"), "name": None}}
    base["eval"]["labels"] = [str(folder / "cleaned.csv")]
    files.write_json(folder / "slow-1.yaml", base)
    for more in ([], ["run.name=fast", "optim.lr=0.1"]):
        assert main.run(["repeat", str(folder / "slow-1.yaml"), "--seeds", "0,3", "--jobs", "1", *more]) == 0
    return folder / "runs/repeats"


def metrics_of(done: Path, name: str) -> list[dict[str, Any]]:
    return [
        json.loads((done / name / f"{name.replace('-', '_')}-seed{seed}/eval/test/metrics.json").read_text())
        for seed in (0, 3)
    ]


def test_each_number_is_the_mean_of_what_the_runs_evaluations_say(done: Path) -> None:
    table = pd.read_csv(done / "slow-1/table.csv").set_index("measure")
    of_runs = metrics_of(done, "slow-1")
    assert list(table.index) == ["top1", "per_class_mean", "nll", "ece", "top-1 by the labels of cleaned"]
    by_name = {name: [one[name] for one in of_runs] for name in ("top1", "per_class_mean", "nll", "ece")} | {
        "top-1 by the labels of cleaned": [one["label_sets"]["cleaned"]["top1"] for one in of_runs]
    }
    for name, values in by_name.items():
        assert table.loc[name, ["mean", "sd"]].tolist() == pytest.approx(
            [np.mean(values), np.std(values, ddof=1)]
        )
        assert table.loc[name, "low"] < table.loc[name, "mean"] < table.loc[name, "high"]
    runs = pd.read_csv(done / "slow-1/runs.csv")
    assert runs[["seed", "run"]].to_numpy().tolist() == [[0, "slow_1-seed0"], [3, "slow_1-seed3"]]
    assert runs["nll"].tolist() == pytest.approx(by_name["nll"])
    assert "| top1 | 2 | " in (done / "slow-1/table.md").read_text()
    assert (done / "slow-1/figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_bound_that_is_not_known_is_a_dash() -> None:
    row = {"measure": "nll", "runs": 2, "mean": 0.4, "sd": 0.1, "low": np.nan, "high": np.nan}
    assert (
        repeat._cells(pd.DataFrame([row]))[0][-1] == "-"
    )  # private: training a run on one test image takes long


def test_each_run_reads_test_once_and_a_repeat_that_is_done_is_only_shown_again(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["repeat", str(done.parent.parent / "slow-1.yaml"), "--seeds", "0,3"]
    assert main.run(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["seeds"], summary["n"], summary["folder"]) == ([0, 3], 18, str(done / "slow-1"))
    assert summary["numbers"][0]["measure"] == "top1"
    for seed in (0, 3):
        run = RunDirectory(done / f"slow-1/slow_1-seed{seed}")
        assert run.count_test_readings() == 1
        assert run.read_status().attempts == 1  # type: ignore[union-attr]


def test_two_repeats_are_compared_seed_by_seed(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["compare", str(done / "slow-1"), str(done / "fast")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [group["name"] for group in result["groups"]] == [str(done / "slow-1"), str(done / "fast")]
    assert [group["seeds"] for group in result["groups"]] == [[0, 3], [0, 3]]
    (comparison,) = result["comparisons"]
    a, b = ([one["top1"] for one in metrics_of(done, name)] for name in ("slow-1", "fast"))
    assert comparison["test"] == statistics.PAIRED
    if np.ptp(np.subtract(b, a)) > 1e-12:
        assert comparison["p_seeds"] == pytest.approx(ttest_rel(a, b).pvalue)
    assert comparison["low_over_seeds"] <= comparison["difference"] <= comparison["high_over_seeds"]
    assert "95 % interval over seeds and images" in comparison["verdict"]
    loose = sorted(path for name in ("slow-1", "fast") for path in (done / name).glob("*-seed*"))
    (one_by_one,) = compare_runs(loose, "test", None)["comparisons"]
    assert one_by_one["test"] == statistics.PAIRED  # by the values of the seeds
    assert one_by_one["p"] == pytest.approx(comparison["p"])


def test_a_repeat_and_one_of_its_runs_are_the_same_run_twice(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["compare", str(done / "fast"), str(done / "fast/fast-seed0")]) == 2
    assert "give two or more different run directories" in capsys.readouterr().err


def test_another_configuration_under_the_same_name_is_refused_and_nothing_is_lost(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (done / "slow-1/table.csv").read_bytes()
    arguments = ["repeat", str(done.parent.parent / "slow-1.yaml"), "--seeds", "0", "--jobs", "1"]
    assert main.run([*arguments, "optim.weight_decay=0.3"]) == 2
    assert "optim.weight_decay" in capsys.readouterr().err
    assert (done / "slow-1/table.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-4", (0, 1, 2, 3, 4)), ("7", (7,)), ("0,3,7-9", (0, 3, 7, 8, 9)), ("2, 1", (2, 1))]
)
def test_seeds_are_ranges_and_lists(text: str, seeds: tuple[int, ...]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4-0", "0,0", "0-2,1", "-1", "0-99999", "1.5", "0-4-5"])
def test_wrong_seeds_are_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        seeds_of(text)
