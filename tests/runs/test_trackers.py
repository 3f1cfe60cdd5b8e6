import csv
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config.load import load_config
from pipeline.runs import wandb_process
from pipeline.runs.log import CLOCKS, FIELDS, LogRecord, read_log
from pipeline.training import gradient_histograms
from pipeline.training.trainer import train
from tests.helpers import processes, tiny

TRACKED = ("tracking.tensorboard=true", "tracking.csv=true", "tracking.log_every_steps=1")
WITH_GRADIENTS = (*TRACKED, "tracking.gradients_every_steps=4")


@pytest.fixture(scope="module")
def run(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed twice, and went on each time from the checkpoint before."""
    tmp = tmp_path_factory.mktemp("tracked")
    words = (*WITH_GRADIENTS, "train.checkpoint_every_steps=3")
    for step in (5, 11):
        processes.interrupt(tiny.arguments("train", tmp, *words), tiny.log_reaches(tmp, step), signal.SIGKILL)
    assert tiny.do("train", tmp, *words) == 0
    return tmp / "runs/tiny"


def scalars(records: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """What a person would want to see of a log: the numbers of each kind and field, with their steps."""
    series: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name in FIELDS[record["kind"]]:
            if isinstance(record[name], int | float):
                series.setdefault(f"{record['kind']}/{name}", []).append((record["step"], record[name]))
    return series


def test_tensorboard_holds_the_numbers_of_the_log(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    expected = scalars(read_log(run / "log.jsonl"))
    assert "step/loss" in expected
    shown = {
        tag: [(event.step, float(event.tensor_proto.float_val[0])) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if not tag.startswith("gradients/")
    }
    assert shown == {
        tag: [(step, float(np.float32(value))) for step, value in points] for tag, points in expected.items()
    }


def test_tensorboard_holds_the_histograms_of_the_log(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    records = [record for record in read_log(run / "log.jsonl") if record["kind"] == "gradients"]
    assert [record["step"] for record in records] == [4, 8, 12]
    for name in records[0]["histograms"]:
        shown = [
            (event.step, event.histogram_value.bucket) for event in events.Histograms(f"gradients/{name}")
        ]
        assert shown == [(record["step"], record["histograms"][name]["counts"]) for record in records]


def test_tables_hold_the_numbers_of_the_log(run: Path) -> None:
    for kind in ("step", "epoch"):
        expected = [record for record in read_log(run / "log.jsonl") if record["kind"] == kind]
        with (run / f"csv/{kind}.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert rows == [
            {name: "" if record[name] is None else str(record[name]) for name in record if name != "kind"}
            for record in expected
        ]


def test_a_run_without_them_makes_neither(trained: Path) -> None:
    assert not (trained / "runs/tiny/tensorboard").exists()
    assert not (trained / "runs/tiny/csv").exists()


def test_whoever_watches_sees_every_record_and_may_end_the_run(birds: Path, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    class Watch:
        def __init__(self) -> None:
            self.seen: list[LogRecord] = []

        def log(self, record: LogRecord) -> None:
            self.seen.append(record)
            if record["kind"] == "epoch" and record["epoch"] == 2:
                raise Enough

        def close(self) -> None:
            self.seen.append({"kind": "closed"})

    watch = Watch()
    with pytest.raises(Enough):
        train(tiny.config(tmp_path, "tracking.log_every_steps=2"), watch)
    *seen, last = watch.seen
    assert last == {"kind": "closed"}
    written = read_log(tmp_path / "runs/tiny/log.jsonl")
    assert [{**record} for record in seen] == [
        {name: value for name, value in record.items() if name not in CLOCKS} for record in written
    ]


def test_words_for_wandb_reach_its_process_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(wandb_process.subprocess, "Popen", lambda command, **_: commands.append(command))
    words = [
        'tracking.notes="robin 🐦: 1e3"',
        "tracking.name=é 🐦",
        "tracking.group=001",
        "tracking.tags=[🐦, a]",
    ]
    config = tiny.config(tmp_path, *words)
    wandb_process.SyncProcess(config, "now")
    overrides = commands[0][commands[0].index(str(config.run_dir)) + 1 :]
    assert load_config(None, overrides).tracking == config.tracking
    assert config.tracking.notes == "robin 🐦: 1e3"


@pytest.mark.parametrize("notes", ["café", "🐦", "a\x85b", "a\x80b", "a\u2028b", "\n\t\"\\U0001f600 'x'"])
def test_words_for_wandb_pass_any_locale_and_are_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: str
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(wandb_process.subprocess, "Popen", lambda command, **_: commands.append(command))
    config = load_config(None, [f"run.root={tmp_path}", "run.name=a"])
    tracking = config.tracking.model_copy(update={"notes": notes})
    wandb_process.SyncProcess(config.model_copy(update={"tracking": tracking}), "now")
    (word,) = (word for word in commands[0] if word.startswith("tracking.notes="))
    assert word.isascii() and load_config(None, [word]).tracking.notes == notes


def test_a_histogram_counts_every_gradient_of_a_weight() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))
    model[0].weight.grad = torch.tensor([[-1.0, 0.0, 1.0], [1.0, 1.0, 0.99]])
    model[0].bias.grad = torch.ones(2)
    model[2].weight.grad = torch.full((2, 2), 0.25)
    histograms = gradient_histograms.histograms(model)
    assert histograms.keys() == {"0.weight", "2.weight"}
    first, alike = histograms["0.weight"], histograms["2.weight"]
    assert (first["edges"][0], first["edges"][-1], len(first["edges"])) == (-1.0, 1.0, 65)
    assert (first["counts"][0], first["counts"][32], first["counts"][63], sum(first["counts"])) == (
        1,
        1,
        4,
        6,
    )
    assert (sum(alike["counts"]), alike["edges"][0], alike["edges"][-1]) == (4, -0.25, 0.75)
    model[2].weight.grad[0, 0] = float("nan")
    assert gradient_histograms.histograms(model).keys() == {"0.weight"}
