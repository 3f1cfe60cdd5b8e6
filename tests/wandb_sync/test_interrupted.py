"""A run that is stopped, killed, or written offline piece by piece is one W&B run, with each step once."""

import signal

import pytest

from tests.helpers import processes
from tests.helpers.wandb_server import WandbServer
from tests.helpers.wandb_world import (
    LAST,
    ONLINE,
    QUICK,
    World,
    expected_rows,
    living_commands,
    sent_rows,
    wait_until,
)


@pytest.mark.slow
def test_a_run_that_is_stopped_and_killed_stays_one_run(world: World) -> None:
    words, server = world.overrides(*ONLINE, "train.checkpoint_every_steps=3"), world.server
    assert processes.train_until(words, 5, signal.SIGTERM, world.environment) == 75
    run = server.only_run()
    assert (run.state, server.alerts) == ("preempted", [])
    assert list(sent_rows(run)) == [1, 2, 3, 4]  # the last one waits: validation is still to come
    assert processes.train_until(words, 11, signal.SIGKILL, world.environment) == -signal.SIGKILL
    wait_until(lambda: run.state == "failed")
    wait_until(lambda: not living_commands(str(world.run_dir)))
    assert [alert["text"].split(" is gone")[0].split()[0] for alert in server.alerts] == ["Process"]
    assert processes.train(words, world.environment) == 0
    assert (server.only_run().state, len(server.alerts), server.unknown) == ("finished", 1, [])
    # steps that were done again have the values of the first time, but for clocks and speed
    clocks = ("/seconds", "/cpu_seconds", "/images_per_s", "/data_wait", "/memory_gib")
    without = [
        {step: {k: v for k, v in row.items() if not k.endswith(clocks)} for step, row in rows.items()}
        for rows in (sent_rows(run), expected_rows(world.run_dir))
    ]
    assert without[0] == without[1]
    assert len(server.versions("model")[-1].manifest["contents"]) == 1


@pytest.mark.slow
def test_an_offline_run_killed_three_times_becomes_one_run_of_each_step_once(world: World) -> None:
    words = world.overrides(
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
            assert sent_rows(run) == expected_rows(world.run_dir)
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
        assert sent_rows(world.server.only_run()) == expected_rows(world.run_dir)
        assert len(world.server.artifacts) == 2
    assert world.server.only_run().id == run.id
    world.wandb_sync()  # which leaves alone what sync has sent
    assert len(world.server.only_run().history) == LAST


@pytest.mark.slow
def test_offline_folders_of_a_run_that_goes_on_add_up_to_one_run(world: World) -> None:
    words = world.overrides("tracking.wandb=offline", "tracking.log_every_steps=1")
    assert processes.train_until(words, 6, signal.SIGTERM, QUICK) == 75
    world.wandb_sync()
    assert list(sent_rows(world.server.only_run())) == [1, 2, 3, 4, 5]
    assert processes.train(words, QUICK) == 0
    world.wandb_sync()
    assert sent_rows(world.server.only_run()) == expected_rows(world.run_dir)
    assert world.server.only_run().state == "finished"
    again = world.sync("--offline")
    assert (again["rows"], again["rows_there"]) == (0, LAST)
