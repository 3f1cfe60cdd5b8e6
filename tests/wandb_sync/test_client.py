"""The real `wandb` client against a stand-in for its server: what a user of W&B would see of a run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.runs.log import best_record, read_log
from pipeline.training.trainer import train
from tests.helpers import tiny
from tests.helpers.wandb_server import KEY, WandbServer
from tests.helpers.wandb_world import (
    LAST,
    ONLINE,
    Outage,
    World,
    expected_rows,
    sent_rows,
    set_environment,
)


@pytest.fixture(scope="module")
def online(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A run that was tracked online, over an outage of the server, and then evaluated."""
    world = World(tmp_path_factory.mktemp("online"), WandbServer().start())
    about = ['tracking.tags=["a","b"]', "tracking.group=g", "tracking.notes=why", "tracking.name=n"]
    words = [*ONLINE, *about, "tracking.gradients_every_steps=6"]
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, world.environment)
        train(tiny.config(world.tmp, *words), Outage(world.server))
        assert tiny.do("eval", world.tmp, *words) == 0
    yield world
    world.server.stop()


def test_a_run_is_sent_whole_though_the_server_was_away_in_mid_run(online: World) -> None:
    run = online.server.only_run()
    assert online.server.unknown == []
    assert (run.state, run.exit_code, run.project) == ("finished", 0, "plumage")
    assert sent_rows(run) == expected_rows(online.run_dir)
    assert len(run.history) == LAST
    assert [row["_timestamp"] for row in run.history] == [
        max(r["time"] for r in read_log(online.run_dir / "log.jsonl") if r["step"] == step)
        for step in range(1, LAST + 1)
    ]
    assert "gradients/backbone.fc.weight" in sent_rows(run)[6]
    assert not online.server.alerts


def test_epochs_have_an_axis_of_their_own(online: World) -> None:
    metrics = online.server.only_run().config["_wandb"]["value"]["m"]
    axis = {metric.get("1") or metric.get("2"): metric.get("5") for metric in metrics}
    names = {number: metric.get("1") for number, metric in enumerate(metrics, start=1)}
    assert {kind: names[axis[f"{kind}/*"]] for kind in ("epoch", "val")} == {
        "epoch": "epoch/epoch",
        "val": "val/epoch",
    }


def test_configuration_and_environment_are_those_of_the_run_and_nothing_else_is_sent(online: World) -> None:
    run = online.server.only_run()
    values = run.values()
    assert values["environment"] == json.loads((online.run_dir / "environment.json").read_text())
    assert values["optim"]["lr"] == 0.02
    assert values["environment"]["git"]["commit"]
    about = {name: run.about[name] for name in ("displayName", "groupName", "notes", "tags")}
    assert about == {"displayName": "n", "groupName": "g", "notes": "why", "tags": ["a", "b"]}
    of_the_client = {"config.yaml", "wandb-summary.json"}
    names = {name for name in run.files if not name.startswith("media/table/")}
    assert names - of_the_client <= {"diff.patch"}
    assert ("diff.patch" in names) == (online.run_dir / "diff.patch").is_file()
    assert "output.log" not in run.streams


def test_the_machine_is_watched_where_the_run_trains(online: World) -> None:
    events = online.server.only_run().events
    assert any("system.proc.memory.rssMB" in event for event in events)


def test_the_key_is_in_no_file(online: World) -> None:
    assert [
        path for path in online.tmp.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()
    ] == []


def test_the_summary_has_the_best_epoch_and_test_since_it_was_evaluated(online: World) -> None:
    summary = online.server.only_run().summary
    best = best_record(read_log(online.run_dir / "log.jsonl"))
    assert best is not None
    assert (summary["best/epoch"], summary["best/val_top1"]) == (best["epoch"], best["val_top1"])
    metrics = json.loads((online.run_dir / "eval/test/metrics.json").read_text())
    numbers = {key: value for key, value in metrics.items() if type(value) in (int, float)}
    assert {key: summary[f"eval/test/{key}"] for key in numbers} == numbers
    assert summary["eval/test/worst_errors"]["_type"] == "table-file"


def test_data_lead_to_the_checkpoint_and_the_checkpoint_to_the_evaluation(online: World) -> None:
    server, run = online.server, online.server.only_run()
    (data,), (model,), (evaluation,) = map(server.versions, ("dataset", "model", "evaluation"))
    digest = json.loads((online.run_dir / "environment.json").read_text())["samples"]
    assert (data.used_by, model.used_by, evaluation.made_by) == ([run.id], [run.id], run.id)
    assert model.made_by == run.id
    assert data.metadata["samples"] == model.metadata["samples"] == evaluation.metadata["samples"] == digest
    assert data.metadata["images"] == {"train": 36, "val": 6, "test": 18}
    assert b"class_name" in server.content(data, "samples.csv")
    best = (online.run_dir / "checkpoints/best.pt").read_bytes()
    assert server.content(model, "best.pt") == best
    assert evaluation.metadata["checkpoint_sha256"] == model.metadata["sha256"]
    for name in ("metrics.json", "per_class.csv"):
        assert server.content(evaluation, name) == (online.run_dir / "eval/test" / name).read_bytes()


def test_the_tables_hold_what_the_evaluation_found_with_pictures(online: World) -> None:
    server, folder = online.server, online.run_dir / "eval/test"
    (evaluation,) = server.versions("evaluation")
    tables = {
        name: json.loads(server.content(evaluation, f"{name}.table.json"))
        for name in ("class_table", "confusion_matrix", "confused_pairs", "worst_errors")
    }
    per_class = pd.read_csv(folder / "per_class.csv")
    rows = pd.DataFrame(tables["class_table"]["data"], columns=tables["class_table"]["columns"])
    assert rows["accuracy"].tolist() == per_class["accuracy"].tolist()
    predicted = pd.read_csv(folder / "predictions.csv")
    counted = {(a, b): n for a, b, n in tables["confusion_matrix"]["data"]}
    pairs = zip(predicted["class_name"], predicted["predicted_name"], strict=True)
    assert counted == pd.Series(list(pairs)).value_counts().to_dict()
    wrong = predicted[predicted["label"] != predicted["predicted"]].sort_values(["probability", "id"])
    worst = pd.DataFrame(tables["worst_errors"]["data"], columns=tables["worst_errors"]["columns"])
    assert worst["id"].tolist() == wrong["id"].tolist()
    picture = worst["picture"][0]
    assert (picture["format"], picture["_type"]) == ("jpg", "image-file")
    assert server.content(evaluation, picture["path"])[:2] == b"\xff\xd8"


def test_sync_changes_nothing_where_everything_is_there(online: World) -> None:
    server, run = online.server, online.server.only_run()

    def looked() -> Any:
        versions = [(one.name, one.version, one.state, one.digest) for one in server.artifacts]
        lines = list(run.streams["wandb-history.jsonl"])
        summary = {key: value for key, value in run.summary.items() if "/" in key and type(value) is not dict}
        return lines, versions, run.state, summary, run.values(), len(server.alerts)

    before = looked()
    said = online.sync()
    assert (said["id"], said["rows_sent"], said["rows_there"]) == (run.id, 0, LAST)
    assert said["left_out"] == []
    assert [name.split("-")[0] for name in said["artifacts"]] == ["data", "model", "evaluation"]
    assert looked() == before
    assert len(server.runs) == 1
