"""The contest of the bench: what validation chooses, what is run next, what all runs come to, and a driver's clock."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "scripts" / "bench"))
sys.path.append(str(Path(__file__).parent.parent / "scripts" / "bench" / "contestants"))

import contest
import contest_runs
import contest_scores as scores
import contest_worker
import contest_world
import recorder
import run_article
from contest_runs import OURS, Contestant, Run
from contest_scores import Point, Result


def result(
    name: str, lr: float, seed: int, *points: tuple[float, float, float], epochs: int | None = None
) -> Result:
    """Points: wall seconds (processor seconds: twice as many), validation, test."""
    found = tuple(Point(wall_s, 2 * wall_s, val, test) for wall_s, val, test in points)
    return Result(name, lr, len(points) if epochs is None else epochs, seed, (5.0, 10.0), found)


def test_validation_chooses_the_epoch_and_of_equal_ones_the_last() -> None:
    points = result("a", 0.1, 0, (10, 0.5, 0.9), (20, 0.7, 0.6), (30, 0.7, 0.5), (40, 0.6, 0.99)).points
    assert scores.best_point(points, "wall_s") == points[2]
    assert scores.best_point(points, "wall_s", 25) == points[1]
    assert scores.best_point(points, "cpu_s", 25) == points[0]
    assert scores.best_point(points, "cpu_s", 19) is None


def test_validation_chooses_the_setting_and_seeds_are_averaged() -> None:
    results = [
        result("a", 0.1, 0, (10, 0.6, 0.7)),
        result("a", 0.1, 1, (20, 0.8, 0.8)),
        result("a", 0.2, 0, (10, 0.65, 0.95)),
    ]
    one = scores.score(results, "wall_s")
    assert one is not None
    assert one == pytest.approx((0.75, 0.7, 15, 0.1, 1, 2))
    early = scores.score(results, "wall_s", 15)  # the second seed has no epoch by then
    assert early is not None and (early.lr, early.test_top1, early.seeds) == (0.2, 0.95, 1)
    assert scores.score(results, "wall_s", 5) is None


def test_an_accuracy_counts_as_reached_where_it_is_kept() -> None:
    results = [result("a", 0.1, 0, (10, 0.5, 0.80), (20, 0.6, 0.70), (30, 0.7, 0.85))]
    assert scores.curve(results, "wall_s") == [(10, 0.80), (20, 0.70), (30, 0.85)]
    assert scores.seconds_to(results, 0.75, "wall_s") == 30
    assert scores.seconds_to(results, 0.70, "wall_s") == 10
    assert scores.seconds_to(results, 0.86, "wall_s") is None


def test_epochs_that_fit_follow_from_an_earlier_run() -> None:
    begin_s, epoch_s = scores.epoch_seconds([result("a", 0.1, 0, (25, 0, 0), (45, 0, 0))], "wall_s") or (0, 0)
    assert (begin_s, epoch_s) == (5, 20)
    assert scores.epochs_within(100, begin_s, epoch_s) == 4
    assert scores.epochs_within(10, begin_s, epoch_s) == 1
    assert scores.epoch_seconds([], "wall_s") is None


def test_the_plan_takes_defaults_then_rates_then_seeds_of_what_validation_chose() -> None:
    contestants = [Contestant("a", "a", (0.1, 0.3)), Contestant("b", "b", (1.0,))]
    done: dict[str, list[Result]] = {}
    order = []
    while run := next(contest_runs.plan(contestants, done, "wall_s", 60), None):
        order.append(run)
        val = 0.9 if run.lr == 0.3 else 0.5
        epochs = run.epochs or 1
        points = [(5.0 + 20 * (epoch + 1), val, 0.4) for epoch in range(epochs)]
        done.setdefault(run.contestant, []).append(
            result(run.contestant, run.lr, run.seed, *points, epochs=run.epochs)
        )
        assert len(order) < 20
    assert order == [
        Run(OURS, 0.0, 0, 0),
        Run("a", 0.1, 0, 1),
        Run("a", 0.1, 0, 2),
        Run("b", 1.0, 0, 1),
        Run("b", 1.0, 0, 2),
        Run("a", 0.3, 0, 2),
        Run(OURS, 0.0, 1, 0),
        Run("a", 0.3, 1, 2),
        Run("b", 1.0, 1, 1),
        Run(OURS, 0.0, 2, 0),
        Run("a", 0.3, 2, 2),
        Run("b", 1.0, 2, 1),
    ]


def test_verdicts_compare_seconds_to_the_others_own_best_and_accuracies_at_equal_seconds() -> None:
    results = {
        OURS: [result(OURS, 0, 0, (20, 0.8, 0.80), (100, 0.9, 0.90))],
        "timm": [result("timm", 0.05, 0, (65, 0.5, 0.60), (200, 0.7, 0.75))],
        "timm, tuned": [result("timm, tuned", 0.02, 0, (70, 0.5, 0.50), (150, 0.8, 0.85))],
        "fastai": [result("fastai", 0.002, 0, (150, 0.9, 0.95))],
    }
    found = list(contest.verdicts(results, "wall_s"))
    times = {one.against: (one.ours, one.other, one.ratio, one.goal, one.met) for one in found if one.against}
    assert times == {
        "timm": (20, 200, 10, 5, True),
        "timm, tuned": (100, 150, 1.5, 2, False),
        "fastai": (100, 150, 0, 5, False),
    }
    assert "ours does not get there" in next(one.note for one in found if one.against == "fastai")
    equal = [
        (one.what.split()[3], round(one.ours, 6), one.unit, one.goal) for one in found if not one.against
    ]
    # at 60 s no other has an accuracy, and at 300 s no run goes on
    assert equal == [("60", 80, "%", None), ("120", 30, "points", 3)]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    content = {"contestant": "timm", "lr": 0.05, "epochs": 1, "seed": 0, "ready": [4.0, 5.0]}
    points = [{"wall_s": 9.0, "cpu_s": 16.0, "val_top1": 0.5, "test_top1": 0.4}]
    (tmp_path / "timm.json").write_text(json.dumps(content | {"points": points, "machine": {}}))
    ours = content | {"contestant": OURS, "ready": None, "points": points, "recipe": "12ab"}
    (tmp_path / "ours.json").write_text(json.dumps(ours))
    assert contest_runs.read_results(tmp_path) == [
        Result(OURS, 0.05, 1, 0, None, (Point(9, 16, 0.5, 0.4),), "12ab"),
        Result("timm", 0.05, 1, 0, (4.0, 5.0), (Point(9, 16, 0.5, 0.4),)),
    ]


def test_test_predictions_cost_a_driver_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train" / "robin").mkdir(parents=True)
    task = {"photographs": str(tmp_path), "started": 1000.0, "out": str(tmp_path / "out"), "lr": 0.1}
    (tmp_path / "task").write_text(json.dumps(task))
    clock = {"wall": 1000.0, "cpu": 0.0}

    def work(seconds: float) -> None:
        clock["wall"] += seconds
        clock["cpu"] += 2 * seconds

    def test() -> recorder.Predicted:
        work(50)
        return [0, 1, 1, 1], [0, 1, 0, 1]

    monkeypatch.setattr(sys, "argv", ["driver", str(tmp_path / "task")])
    monkeypatch.setattr(time, "time", lambda: clock["wall"])
    monkeypatch.setattr(recorder, "processor_s", lambda _: clock["cpu"])
    run = recorder.Recorder()
    work(3)
    run.training_begins()
    for _ in range(2):
        work(10)
        run.epoch(0.5, test)
    written = json.loads((tmp_path / "out").read_text())
    assert (run.lr, run.classes, written["ready"]) == (0.1, 1, [3, 6])
    shared = {"val_top1": 0.5, "test_top1": 0.75}
    assert written["points"] == [{"wall_s": 13, "cpu_s": 26, **shared}, {"wall_s": 23, "cpu_s": 46, **shared}]


def test_processor_seconds_hold_those_of_children_that_have_ended() -> None:
    subprocess.run([sys.executable, "-c", "sum(range(5_000_000))"], check=True)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    least = time.process_time() + ended.ru_utime + ended.ru_stime
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert recorder.processor_s(os.getpid()) >= least - 4 * tick


def test_contestants_have_a_driver_and_what_their_environment_asks_for() -> None:
    for one in contest_runs.CONTESTANTS:
        assert (contest_world.DRIVERS / f"run_{one.driver}.py").is_file(), one.name
        assert not one.environment or (contest_world.DRIVERS / f"{one.environment}.txt").is_file(), one.name
        assert len({*one.rates}) == 3, one.name


def test_a_comment_in_the_recipe_starts_no_run_anew(tmp_path: Path) -> None:
    texts = {"a": "train: {epochs: 3}", "b": "# measured\ntrain:\n  epochs: 3", "c": "train: {epochs: 4}"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    a, b, c = (contest_worker.digest_of(tmp_path / name) for name in texts)
    assert a == b != c


def test_the_articles_steps_are_those_of_88_epochs() -> None:
    rates = [2e-3 * run_article.factor(epoch / 88) for epoch in (0, 19, 20, 29, 30, 49, 50, 87)]
    assert rates == pytest.approx([2e-3, 2e-3, 1e-3, 1e-3, 5e-4, 5e-4, 1e-4, 1e-4])


def test_a_setting_has_a_score_when_each_of_its_seeds_has_one() -> None:
    """Else the quickest seed would say when a contestant is there."""
    quick = Result("a", 0.1, 1, 0, None, (Point(5, 5, 0.9, 0.8),))
    slow = Result("a", 0.1, 1, 1, None, (Point(9, 9, 0.9, 0.6),))
    assert scores.score([quick, slow], "cpu_s", 8) is None
    assert scores.curve([quick, slow], "cpu_s") == [(9, pytest.approx(0.7))]
    assert scores.seconds_to([quick, slow], 0.65, "cpu_s") == 9
