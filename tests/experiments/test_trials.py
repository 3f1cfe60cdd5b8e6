"""Trials of a sweep without training: shared by processes, abandoned, failed, pruned."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.common.errors import DataError
from pipeline.experiments.sweeps import trials
from pipeline.experiments.sweeps.plan import SweepPlan
from pipeline.experiments.sweeps.trials import JOURNAL, Trials
from tests.helpers.sweeps import claiming_process, objective, untrained_trials, write_sweep


def drawn(shared: Trials) -> list[dict[str, Any]]:
    return [dict(trial.params) for trial in shared.all()]


def test_the_draws_are_a_function_of_the_seed_and_of_what_came_before(tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    for folder in (one, two):
        folder.mkdir()
    whole = drawn(untrained_trials(write_sweep(one, method="bayes"), 14))
    untrained_trials(write_sweep(two, method="bayes"), 6)
    assert drawn(untrained_trials(two / "search.yaml", 14)) == whole  # interrupted after the sixth
    assert len({json.dumps(params) for params in whole}) == 14
    best = max(objective(params) for params in whole)
    assert best > 0.97  # TPE has come near the best, 1.0


def test_the_seed_of_the_base_configuration_is_the_sweeps(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    first, other = (Trials(SweepPlan(path, (f"run.name=s{seed}", f"seed={seed}")), None) for seed in (0, 1))
    assert first.claim(1).values != other.claim(1).values  # type: ignore[union-attr]


def test_commands_at_once_make_exactly_as_many_trials_as_were_asked_for(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    code = (
        "import sys; from pathlib import Path; from pipeline.experiments.sweeps.plan import SweepPlan\n"
        "from pipeline.experiments.sweeps.trials import Trials\n"
        "shared = Trials(SweepPlan(Path(sys.argv[1])), None)\n"
        "while claim := shared.claim(12): shared.finish(claim.number, 'complete', 0.5); claim.lock.close()"
    )
    crew = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [process.wait(120) for process in crew] == [0, 0, 0]
    shared = Trials(SweepPlan(path), None)
    assert len(shared.finished()) == len(shared.all()) == 12
    who = [trial.user_attrs["taken"] for trial in shared.all()]
    assert all(len(taken) == 1 for taken in who)
    assert shared.claim(12) is None
    assert shared.claim(13) is not None


def test_a_trial_of_a_live_process_is_left_alone_and_that_of_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    holder = claiming_process(path)
    shared = Trials(SweepPlan(path), None)
    values = shared.values(shared.all()[0])
    assert shared.abandoned() == []
    assert (shared.claimable(1), shared.claimable(3)) == (0, 2)
    second = shared.claim(2)
    assert second is not None and second.number == 1
    assert shared.claim(2) is None

    holder.kill()
    holder.wait()
    assert [trial.number for trial in shared.abandoned()] == [0]
    assert shared.claimable(1) == 1  # what has begun is done, whatever the limit
    again = shared.claim(2)
    assert again is not None
    assert (again.number, again.values) == (0, values)
    assert len(shared.all()) == 2


def test_a_trial_that_kills_its_processes_has_failed_and_one_that_was_stopped_has_not(tmp_path: Path) -> None:
    shared = Trials(SweepPlan(write_sweep(tmp_path)), None)
    for _ in range(5):
        stopped = shared.claim(1)
        assert stopped is not None
        shared.release(stopped.number)
        stopped.lock.close()
    for _ in range(trials.MOST_KILLS):
        killed = shared.claim(1)
        assert killed is not None
        killed.lock.close()  # as the kernel does when the process dies
    assert shared.claim(1) is None
    assert shared.finished()[0].user_attrs["outcome"] == "failed"
    assert "3 processes in a row were killed" in shared.finished()[0].user_attrs["why"]


def test_half_a_line_at_the_journals_end_is_taken_off(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    untrained_trials(path, 2)
    journal = SweepPlan(path).folder / JOURNAL
    with journal.open("ab") as stream:
        stream.write(b'{"op_code": 4, "worker')
    assert len(untrained_trials(path, 4).finished()) == 4
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_the_last_line_of_the_journal_may_have_lost_its_end_alone(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    before = drawn(untrained_trials(path, 2))
    journal = SweepPlan(path).folder / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole.rstrip(b"\n"))
    assert drawn(Trials(SweepPlan(path), None)) == before
    assert journal.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"notes of years without an end of line", 1),
        (b"notes\nof years\n", 1),
        (b'{"op_code":0,"worker_id":"a","study_name":"search","directions":[2]}\nnotes\n', 2),
        (b'{"op_code":0,"worker_id":"a","study_name":"search","directions":[2]}\nno end', 2),
        (b'["a list"]\n', 1),
    ],
)
def test_what_is_no_journal_is_named_and_stays_as_it_is(tmp_path: Path, content: bytes, line: int) -> None:
    plan = SweepPlan(write_sweep(tmp_path))
    plan.folder.mkdir(parents=True)
    (plan.folder / JOURNAL).write_bytes(content)
    for _ in range(2):  # no lock is left behind
        with pytest.raises(
            DataError, match=rf"study.journal: not a sweep journal, or damaged in line {line};"
        ):
            Trials(plan, None)
    assert (plan.folder / JOURNAL).read_bytes() == content


def test_a_journal_whose_lines_lack_fields_is_named(tmp_path: Path) -> None:
    plan = SweepPlan(write_sweep(tmp_path))
    plan.folder.mkdir(parents=True)
    (plan.folder / JOURNAL).write_bytes(b'{"op_code":0}\n')
    with pytest.raises(DataError, match=r"damaged \(KeyError\)"):
        Trials(plan, None)


def test_a_sweep_in_a_folder_that_was_renamed_goes_on(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    before = drawn(untrained_trials(path, 2))
    plan = SweepPlan(path)
    plan.folder.rename(plan.folder.with_name("renamed"))
    assert drawn(untrained_trials(path, 3, name="renamed"))[:2] == before


def test_pruning_ends_what_is_below_the_median_or_out_of_the_best_share(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2})
    shared = {
        name: untrained_trials(path, 16, name, f"with_{name}") for name in ("median", "hyperband", "none")
    }
    shared["file"] = untrained_trials(path, 16)
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
