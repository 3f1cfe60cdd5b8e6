"""Without a server, a key or the client training goes on; failures, sweeps and other machines are told to W&B."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import read_log
from pipeline.wandb_sync import client, sync
from pipeline.wandb_sync.tracked_run import TrackedRun
from tests.helpers import processes, tiny
from tests.helpers.wandb_server import ENTITY
from tests.helpers.wandb_world import (
    LAST,
    ONLINE,
    World,
    expected_rows,
    living_commands,
    sent_rows,
    set_environment,
)


@pytest.mark.parametrize("trouble", ["no server", "no key", "another key", "no wandb"])
def test_training_goes_on_without_wandb_after_one_warning_and_sync_completes_it(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    trouble: str,
) -> None:
    set_environment(monkeypatch, world.environment)
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
    assert f"`plumage sync {world.run_dir}`" in warnings[0]
    assert "Traceback" not in said
    assert not living_commands(str(world.run_dir))
    if trouble == "no server":
        world.server.start()
        assert world.sync()["rows_sent"] == 5
        assert sent_rows(world.server.only_run()) == expected_rows(world.run_dir)


def test_a_loss_that_diverges_is_an_alert_and_a_failed_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, world.environment)
    assert tiny.do("train", world.tmp, *ONLINE, "optim.lr=1e30") == 2
    run, (alert,) = world.server.only_run(), world.server.alerts
    assert run.state == "failed"
    assert "diverged" in alert["title"]
    assert "training has diverged at learning rate" in alert["text"]
    assert sent_rows(run) == expected_rows(world.run_dir)
    world.sync()
    assert len(world.server.alerts) == 1


@pytest.mark.slow
def test_a_trial_of_wandbs_agent_is_sent_as_a_run_of_its_sweep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"SWEEP_ID": "s1", "RUN_ID": "r1", "PROJECT": "birds", "ENTITY": ENTITY}
    set_environment(
        monkeypatch, world.environment | {f"WANDB_{name}": value for name, value in given.items()}
    )
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
    assert processes.train(world.overrides("tracking.log_every_steps=1", "train.max_steps=5")) == 0
    with RunDirectory(world.run_dir).running():
        said = world.sync()
        assert (said["state"], said["rows_sent"], said["artifacts"]) == ("running", 4, [])
        assert world.server.only_run().state == "running"
    said = world.sync()
    assert (said["state"], said["rows_sent"], len(said["artifacts"])) == ("finished", 1, 2)
    assert world.server.only_run().state == "finished"


def test_sync_says_in_one_sentence_why_it_cannot(world: World) -> None:
    assert processes.train(world.overrides("train.max_steps=2")) == 0
    world.server.stop()
    words = [sys.executable, "-m", "pipeline", "sync", str(world.run_dir), "tracking.upload_wait_s=1"]
    done = tiny.launch(words, env={**os.environ, **world.environment})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: W&B: {world.server.url} does not answer")
    assert len(done.stderr.splitlines()) == 1


NOBODY = """
import pwd, sys

def unknown(uid):
    raise KeyError(uid)

pwd.getpwuid = unknown  # a user id without a name, as in a container
from pipeline.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def test_a_user_id_without_a_name_and_home_writes_an_offline_run(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    words = [sys.executable, "-c", NOBODY, "sync", "--offline", str(tmp_path / "runs/tiny")]
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = tiny.launch(words, env={**environment, "PYTHONPATH": str(Path.cwd())})
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["runs"]
    assert result["rows"] == 3
    assert list((tmp_path / "runs/tiny/wandb").glob("offline-run-*/*.wandb"))
    assert not (Path.cwd() / "~").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": 7}', b"\xff", b'{"id": "a", "sent": "x"}'])
def test_a_damaged_identity_is_named_and_never_to_be_deleted(
    trained: Path, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    path = tmp_path / "runs/tiny/wandb.json"
    path.write_bytes(content)
    assert tiny.run(["sync", "--offline", str(tmp_path / "runs/tiny")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {path}: damaged")
    assert "the last part of the run's address at W&B" in said
    assert "delete" not in said
    assert path.read_bytes() == content


def test_what_a_later_version_has_written_into_the_identity_stays(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    path = tmp_path / "runs/tiny/wandb.json"
    path.write_text(
        '{"id": "a1", "project": "p", "entity": null, "alerts": [], "sent": 3, "offline": 0, "new": [1]}'
    )
    tracked = TrackedRun.open(tmp_path / "runs/tiny")
    tracked.note(sent=5)
    assert (tracked.identity().id, tracked.identity().sent) == ("a1", 5)
    assert json.loads(path.read_text())["new"] == [1]


def test_a_damaged_run_does_not_keep_the_others_from_being_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(trained / "runs/tiny", tmp_path / name)
    (tmp_path / "a/log.jsonl").write_text("no log\n")
    assert tiny.run(["sync", "--offline", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert f"warning: {tmp_path / 'a/log.jsonl'}, line 1" in said
    assert f"error: not written for W&B: {tmp_path / 'a'}; of the others 1 were: {tmp_path / 'b'}" in said
    assert list((tmp_path / "b/wandb").glob("offline-run-*"))


def three_runs(trained: Path, tmp_path: Path) -> list[Path]:
    return [Path(shutil.copytree(trained / "runs/tiny", tmp_path / name)) for name in ("a", "b", "c")]


def fail_for(monkeypatch: pytest.MonkeyPatch, run_dir: Path, raised: Exception) -> None:
    """The client's end raises for one run; the others are sent without a server."""

    def complete(tracked: TrackedRun) -> dict[str, str]:
        with client.errors_as_sentences(tracked):
            if tracked.run_dir == run_dir:
                raise raised
        return {"run": str(tracked.run_dir)}

    monkeypatch.setattr(sync, "_complete", complete)


def test_a_run_that_is_not_taken_in_time_does_not_keep_the_others_from_being_sent(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = three_runs(trained, tmp_path)
    fail_for(monkeypatch, a, TimeoutError())
    with pytest.raises(UserError) as failed:
        sync.sync_runs([a, b, c])
    assert str(failed.value) == f"not sent to W&B: {a}; of the others 2 were: {b}, {c}"
    assert "has not taken everything in 300 s" in capsys.readouterr().err


def test_a_server_that_is_gone_is_not_asked_for_each_run_and_no_run_goes_without_a_word(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = three_runs(trained, tmp_path)
    wandb = pytest.importorskip("wandb")
    fail_for(monkeypatch, b, wandb.errors.CommError("no route"))
    with pytest.raises(client.Unreachable) as failed:
        sync.sync_runs([a, b, c])
    assert "does not answer (no route)" in str(failed.value)
    assert str(failed.value).endswith(f"; not sent to W&B: {b}; not tried: {c}; of the others 1 were: {a}")


def test_the_client_is_imported_neither_for_help_nor_for_training(world: World) -> None:
    done = tiny.launch([sys.executable, "-X", "importtime", "-m", "pipeline", "--help"])
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert imported.isdisjoint({"wandb", "torch"})
    modules = processes.modules_of_training(world.overrides(*ONLINE, "train.max_steps=2"), world.environment)
    # wandb itself may be there: timm.utils imports it, where it is installed, and does nothing with it
    assert "torch" in modules
    assert not [name for name in modules if name.startswith("pipeline.wandb_sync")]
    assert len(world.server.only_run().history) == 2
