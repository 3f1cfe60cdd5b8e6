"""The real `wandb` client against a stand-in for its server: what a user of W&B would see."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.runs import status
from pipeline.runs.log import LogRecord, best_record, read_log
from pipeline.training.trainer import train
from tests.helpers import processes, tiny
from tests.helpers.wandb_server import ENTITY, KEY, WandbRun, WandbServer

QUICK = {
    "WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1",  # less is taken for the default of 15 s
    "WANDB__FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "0.1",
    "WANDB__FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "0.3",
    "WANDB__GRAPHQL_RETRY_WAIT_MIN_SECONDS": "0.1",
    "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": "0.3",
    "WANDB__STATS_SAMPLING_INTERVAL": "0.1",
}
ONLINE = ("tracking.wandb=online", "tracking.log_every_steps=1")
LAST = 15  # 3 epochs of 5 steps


@dataclass
class World:
    """A server, and a folder of runs of which one is `tiny`."""

    tmp: Path
    server: WandbServer

    @property
    def run_dir(self) -> Path:
        return self.tmp / "runs/tiny"

    @property
    def environment(self) -> dict[str, str]:
        return {**self.server.environment, **QUICK}

    def sync(self, *options: str, **more: str) -> dict[str, Any]:
        """The verb in a process of its own; what it says of the one run."""
        words = [sys.executable, "-m", "pipeline", "sync", *options, str(self.run_dir)]
        done = tiny.launch(words, env={**os.environ, **self.environment, **more})
        assert done.returncode == 0, done.stderr
        (said,) = json.loads(done.stdout)["runs"]
        return said

    def wandb_sync(self) -> None:
        """W&B's own command on the one offline folder."""
        (folder,) = (self.run_dir / "wandb").glob("offline-run-*")
        done = tiny.launch(
            [str(Path(sys.executable).with_name("wandb")), "sync", str(folder)],
            env={**os.environ, **self.environment},
            cwd=self.tmp,  # it leaves a folder where it is called
        )
        assert done.returncode == 0, done.stderr

    def words(self, *more: str) -> list[str]:
        return tiny.overrides(self.tmp, *more)


def expected(run_dir: Path) -> dict[int, dict[str, Any]]:
    """The rows that the log asks for, in plain words: independent of the code that sends them."""
    found: dict[int, dict[str, Any]] = {}
    for record in read_log(run_dir / "log.jsonl"):
        row = found.setdefault(record["step"], {})
        if record["kind"] == "gradients":
            for name, histogram in record["histograms"].items():
                row[f"gradients/{name}"] = [histogram["counts"], histogram["edges"]]
        else:
            kept = {name: value for name, value in record.items() if value is not None}
            row |= {f"{record['kind']}/{name}": kept[name] for name in kept.keys() - {"kind", "step", "time"}}
    return found


def seen(run: WandbRun) -> dict[int, dict[str, Any]]:
    """The rows of a run as its server has them; fails when a step stands there twice or out of order."""
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps))
    rows = {}
    for row in run.history:
        named = {key: value for key, value in row.items() if not key.startswith("_")}
        rows[row["_step"]] = {
            key: [value["values"], value["bins"]] if isinstance(value, dict) else value
            for key, value in named.items()
        }
    return rows


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.02)


def alive(word: str) -> list[str]:
    """The command lines of living processes in which a word stands."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in lines if word in line]


class Outage:
    """Takes the server away in mid-run, when it has some rows, and brings it back before the end."""

    def __init__(self, server: WandbServer) -> None:
        self._server = server

    def log(self, record: LogRecord) -> None:
        if (record["kind"], record["step"]) == ("step", 5):  # whose row has an epoch's record to come
            until(lambda: self._server.runs and len(self._server.only_run().history) >= 2)
            self._server.stop()
        elif (record["kind"], record["step"]) == ("step", 12):
            time.sleep(1.5)  # so that what was logged meanwhile is tried in vain
            self._server.start()

    def close(self) -> None:
        pass


def overwrite(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def online(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A run that was tracked online, over an outage of the server, and then evaluated."""
    world = World(tmp_path_factory.mktemp("online"), WandbServer().start())
    about = ['tracking.tags=["a","b"]', "tracking.group=g", "tracking.notes=why", "tracking.name=n"]
    words = [*ONLINE, *about, "tracking.gradients_every_steps=6"]
    with pytest.MonkeyPatch.context() as patch:
        overwrite(patch, world.environment)
        train(tiny.config(world.tmp, *words), Outage(world.server))
        assert tiny.do("eval", world.tmp, *words) == 0
    yield world
    world.server.stop()


def test_a_run_is_sent_whole_though_the_server_was_away_in_mid_run(online: World) -> None:
    run = online.server.only_run()
    assert online.server.unknown == []
    assert (run.state, run.exit_code, run.project) == ("finished", 0, "plumage")
    assert seen(run) == expected(online.run_dir)
    assert len(run.history) == LAST
    assert [row["_timestamp"] for row in run.history] == [
        max(r["time"] for r in read_log(online.run_dir / "log.jsonl") if r["step"] == step)
        for step in range(1, LAST + 1)
    ]
    assert "gradients/backbone.fc.weight" in seen(run)[6]
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


@pytest.fixture
def world(birds: Path, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, WandbServer().start())
    yield world
    world.server.stop()


def test_a_run_that_is_stopped_and_killed_stays_one_run(world: World) -> None:
    words, server = world.words(*ONLINE, "train.checkpoint_every_steps=3"), world.server
    assert processes.train_until(words, 5, signal.SIGTERM, world.environment) == 75
    run = server.only_run()
    assert (run.state, server.alerts) == ("preempted", [])
    assert list(seen(run)) == [1, 2, 3, 4]  # the last one waits: validation is still to come
    assert processes.train_until(words, 11, signal.SIGKILL, world.environment) == -signal.SIGKILL
    until(lambda: run.state == "failed")
    until(lambda: not alive(str(world.run_dir)))
    assert [alert["text"].split(" is gone")[0].split()[0] for alert in server.alerts] == ["Process"]
    assert processes.train(words, world.environment) == 0
    assert (server.only_run().state, len(server.alerts), server.unknown) == ("finished", 1, [])
    # steps that were done again have the values of the first time, but for clocks and speed
    clocks = ("/seconds", "/cpu_seconds", "/images_per_s", "/data_wait", "/memory_gib")
    without = [
        {step: {k: v for k, v in row.items() if not k.endswith(clocks)} for step, row in found.items()}
        for found in (seen(run), expected(world.run_dir))
    ]
    assert without[0] == without[1]
    assert len(server.versions("model")[-1].manifest["contents"]) == 1


def test_an_offline_run_killed_three_times_becomes_one_run_of_each_step_once(world: World) -> None:
    words = world.words(
        "tracking.wandb=offline", "tracking.log_every_steps=1", "train.checkpoint_every_steps=3"
    )
    for step in (4, 8, 14):
        assert processes.train_until(words, step, signal.SIGKILL) == -signal.SIGKILL
    assert processes.train(words, QUICK) == 0
    other = World(world.tmp, WandbServer().start())
    try:
        for _ in range(2):
            other.wandb_sync()
            run = other.server.only_run()
            assert (run.state, other.server.unknown) == ("finished", [])
            assert seen(run) == expected(world.run_dir)
            (model,) = other.server.versions("model")
            best = (world.run_dir / "checkpoints/best.pt").read_bytes()
            assert other.server.content(model, "best.pt") == best
            assert other.server.versions("dataset")[0].used_by == [run.id]
    finally:
        other.server.stop()
    for mark in (world.run_dir / "wandb").glob("offline-run-*/*.synced"):
        mark.unlink()  # this server knows nothing of the other
    for sent, there in ((LAST, 0), (0, LAST)):
        said = world.sync()
        assert (said["rows_sent"], said["rows_there"]) == (sent, there)
        assert seen(world.server.only_run()) == expected(world.run_dir)
        assert len(world.server.artifacts) == 2
    assert world.server.only_run().id == run.id
    world.wandb_sync()  # which leaves alone what sync has sent
    assert len(world.server.only_run().history) == LAST


def test_offline_folders_of_a_run_that_goes_on_add_up_to_one_run(world: World) -> None:
    words = world.words("tracking.wandb=offline", "tracking.log_every_steps=1")
    assert processes.train_until(words, 6, signal.SIGTERM, QUICK) == 75
    world.wandb_sync()
    assert list(seen(world.server.only_run())) == [1, 2, 3, 4, 5]
    assert processes.train(words, QUICK) == 0
    world.wandb_sync()
    assert seen(world.server.only_run()) == expected(world.run_dir)
    assert world.server.only_run().state == "finished"
    again = world.sync("--offline")
    assert (again["rows"], again["rows_there"]) == (0, LAST)


@pytest.mark.parametrize("trouble", ["no server", "no key", "another key", "no wandb"])
def test_training_goes_on_without_wandb_after_one_warning_and_sync_completes_it(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    trouble: str,
) -> None:
    overwrite(monkeypatch, world.environment)
    says = {
        "no server": "does not answer",
        "no key": "there is no API key; set WANDB_API_KEY",
        "another key": "refuses the run",
        "no wandb": "cannot be imported",
    }
    if trouble == "no server":
        world.server.stop()
    elif trouble == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    elif trouble == "another key":
        monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    else:
        (tmp_path / "wandb.py").write_text("raise ImportError('not here')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert tiny.do("train", world.tmp, *ONLINE, "tracking.upload_wait_s=8", "train.max_steps=5") == 0
    said = capsys.readouterr().err
    warnings = [line for line in said.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert says[trouble] in warnings[0]
    assert f"`python -m pipeline sync {world.run_dir}`" in warnings[0]
    assert "Traceback" not in said
    assert not alive(str(world.run_dir))
    if trouble == "no server":
        world.server.start()
        assert world.sync()["rows_sent"] == 5
        assert seen(world.server.only_run()) == expected(world.run_dir)


def test_a_loss_that_diverges_is_an_alert_and_a_failed_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    overwrite(monkeypatch, world.environment)
    assert tiny.do("train", world.tmp, *ONLINE, "optim.lr=1e30") == 2
    run, (alert,) = world.server.only_run(), world.server.alerts
    assert run.state == "failed"
    assert "diverged" in alert["title"]
    assert "training has diverged at learning rate" in alert["text"]
    assert seen(run) == expected(world.run_dir)
    world.sync()
    assert len(world.server.alerts) == 1


def test_a_trial_of_wandbs_agent_is_sent_as_a_run_of_its_sweep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"SWEEP_ID": "s1", "RUN_ID": "r1", "PROJECT": "birds", "ENTITY": ENTITY}
    overwrite(monkeypatch, world.environment | {f"WANDB_{name}": value for name, value in given.items()})
    assert tiny.do("train", world.tmp, *ONLINE) == 0
    run = world.server.only_run()
    assert (run.id, run.project, run.about["sweep"], run.state) == ("r1", "birds", "s1", "finished")
    looks = [r["val_top1"] for r in read_log(world.run_dir / "log.jsonl") if r["kind"] == "epoch"]
    assert run.summary["epoch/val_top1"] == max(looks)
    for name in given:
        monkeypatch.delenv(f"WANDB_{name}")
    assert world.sync()["rows_there"] == LAST
    assert (list(world.server.runs), run.about["sweep"]) == (["r1"], "s1")


def test_a_run_that_another_machine_trains_stays_a_running_one(world: World) -> None:
    assert processes.train(world.words("tracking.log_every_steps=1", "train.max_steps=5")) == 0
    with status.running(world.run_dir):
        said = world.sync()
        assert (said["state"], said["rows_sent"], said["artifacts"]) == ("running", 4, [])
        assert world.server.only_run().state == "running"
    said = world.sync()
    assert (said["state"], said["rows_sent"], len(said["artifacts"])) == ("finished", 1, 2)
    assert world.server.only_run().state == "finished"


def test_sync_says_in_one_sentence_why_it_cannot(world: World) -> None:
    assert processes.train(world.words("train.max_steps=2")) == 0
    world.server.stop()
    words = [sys.executable, "-m", "pipeline", "sync", str(world.run_dir), "tracking.upload_wait_s=1"]
    done = tiny.launch(words, env={**os.environ, **world.environment})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: W&B: {world.server.url} does not answer")
    assert len(done.stderr.splitlines()) == 1


def test_the_client_is_imported_neither_for_help_nor_for_training(world: World) -> None:
    done = tiny.launch([sys.executable, "-X", "importtime", "-m", "pipeline", "--help"])
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert imported.isdisjoint({"wandb", "torch"})
    modules = processes.modules_of_training(world.words(*ONLINE, "train.max_steps=2"), world.environment)
    # wandb itself may be there: timm.utils imports it, where it is installed, and does nothing with it
    assert "torch" in modules
    assert not [name for name in modules if name.startswith("pipeline.sync")]
    assert len(world.server.only_run().history) == 2
