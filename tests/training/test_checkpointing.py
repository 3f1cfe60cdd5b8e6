"""Checkpoints are written while training goes on: one at a time, whole or not at all, and no error of it is lost."""

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from pipeline.common.errors import REFUSALS, FileRefused, Stopped
from pipeline.config.load import load_config
from pipeline.runs import checkpoints
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import LogRecord
from pipeline.training import checkpointing
from pipeline.training.checkpointing import copy_to_host
from pipeline.training.state import Best
from pipeline.training.trainer import train
from tests.helpers import processes, tiny

EVERY_STEP = ["train.checkpoint_every_steps=1", "train.keep_checkpoints=100", "tracking.log_every_steps=1"]
save, link = checkpoints.save, checkpoints.link


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_names_of_one_moment_are_one_file(birds: Path, tmp_path: Path) -> None:
    more = ["train.keep_checkpoints=3"]
    assert tiny.do("train", tmp_path, *more, "train.epochs=3", "train.max_steps=5") == 0
    folder = tiny.checkpoints(tmp_path)
    assert inode(folder / "best.pt") == inode(folder / "last.pt") == inode(folder / "step-0000005.pt")
    assert tiny.do("train", tmp_path, *more) == 0
    best = torch.load(folder / "best.pt", weights_only=True)["step"]
    for step in (5, 10, 15):
        content = torch.load(folder / f"step-{step:07}.pt", weights_only=True)
        assert content["step"] == step
        assert (inode(folder / f"step-{step:07}.pt") == inode(folder / "best.pt")) == (step == best)
    assert inode(folder / "step-0000015.pt") == inode(folder / "last.pt")


def test_where_a_file_system_has_no_hard_links_they_are_copies(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert tiny.do("train", tmp_path, "train.max_steps=5") == 0
    folder = tiny.checkpoints(tmp_path)
    assert inode(folder / "best.pt") != inode(folder / "last.pt")
    assert (folder / "best.pt").read_bytes() == (folder / "last.pt").read_bytes()


class SlowDisk:
    """Writes of checkpoints that end only when the training has gone on; counts those in flight."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step, self.in_flight, self.most = 0, 0, 0
        self.threads, self.steps_at_end = set[str](), list[tuple[int, int]]()
        self._lock = threading.Lock()
        monkeypatch.setattr(checkpoints, "save", self._save)

    def log(self, record: LogRecord) -> None:
        self.step = record["step"]

    def close(self) -> None:
        pass

    def _save(self, path: Path, content: dict[str, Any]) -> None:
        with self._lock:
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
        self.threads.add(threading.current_thread().name)
        deadline = time.monotonic() + 5  # the last one is not followed by a step
        while self.step < min(content["step"] + 1, 5) and time.monotonic() < deadline:
            time.sleep(0.001)
        save(path, content)
        self.steps_at_end.append((content["step"], self.step))
        with self._lock:
            self.in_flight -= 1


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [*EVERY_STEP, "train.ema_decay=0.9", "train.max_steps=5"]
    assert tiny.do("train", tmp_path, *more, "run.name=calm") == 0
    disk = SlowDisk(monkeypatch)
    train(tiny.config(tmp_path, *more), disk)
    assert disk.threads.isdisjoint({threading.main_thread().name})
    assert disk.steps_at_end == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 5), (5, 5)]
    assert disk.most == 1
    for step in range(1, 6):
        one, other = (
            torch.load(tiny.checkpoints(tmp_path, name) / f"step-{step:07}.pt", weights_only=True)
            for name in ("calm", "tiny")
        )
        for of_the_run in ("config", "history"):  # run.name, and the time
            assert one.pop(of_the_run) != other.pop(of_the_run)
        for mine, its in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True):
            assert torch.equal(mine, its) if isinstance(mine, torch.Tensor) else mine == its


def fill_disk(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the writes of a step, and of those after it, fail."""

    def refuse(path: Path, content: dict[str, Any]) -> None:
        if content["step"] >= step:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(path, content)

    monkeypatch.setattr(checkpoints, "save", refuse)


@pytest.mark.parametrize(("step", "seen"), [(3, 4), (15, 15)])
def test_a_write_that_fails_ends_the_run_with_its_sentence(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    seen: int,
) -> None:
    """At the next step, or at the end of the run."""
    fill_disk(monkeypatch, step)
    assert tiny.do("train", tmp_path, *EVERY_STEP) == 2
    run, said = RunDirectory(tmp_path / "runs/tiny"), capsys.readouterr().err
    sentence = f"last.pt: {REFUSALS[errno.ENOSPC]}"
    assert said.splitlines()[-1].startswith("error: ")
    assert said.count(sentence) == said.count("error: ") == 1
    status = run.read_status()
    assert status is not None
    assert (status.state, str(status.why).endswith(sentence)) == ("failed", True)
    assert tiny.records(run.log_file)[-1]["step"] == seen
    assert torch.load(run.checkpoint("last"), weights_only=True)["step"] == step - 1
    monkeypatch.undo()
    assert tiny.do("train", tmp_path, *EVERY_STEP) == 0
    assert tiny.same_weights(run.checkpoint("last"), tiny.checkpoints(trained) / "last.pt")


def test_a_write_that_fails_ends_the_run_before_another_is_due(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        def log(self, record: LogRecord) -> None:
            if record["step"] in (3, 4):
                time.sleep(0.4)  # for the write that fails at once

        def close(self) -> None:
            pass

    fill_disk(monkeypatch, 2)
    more = ["train.checkpoint_every_steps=2", "tracking.log_every_steps=1"]
    with pytest.raises(FileRefused, match="the disk is full"):
        train(tiny.config(tmp_path, *more), Slow())
    assert tiny.records(tmp_path / "runs/tiny/log.jsonl")[-1]["step"] == 3


def test_a_write_that_fails_when_the_run_has_failed_already_is_a_warning(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fails:
        def log(self, record: LogRecord) -> None:
            if record["step"] == 2:
                raise ValueError("a bug")

        def close(self) -> None:
            pass

    fill_disk(monkeypatch, 1)
    with pytest.raises(ValueError, match="a bug"):
        train(tiny.config(tmp_path, "train.checkpoint_every_steps=1", "tracking.log_every_steps=2"), Fails())
    assert f"last.pt: {REFUSALS[errno.ENOSPC]}" in capsys.readouterr().err


class Stops:
    """Asks the run to stop at its third step."""

    def log(self, record: LogRecord) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        pass


def test_a_stop_waits_for_the_write(birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(path: Path, content: dict[str, Any]) -> None:
        time.sleep(0.5)
        save(path, content)

    monkeypatch.setattr(checkpoints, "save", slowly)
    with pytest.raises(Stopped, match=r"at step 3 of 15, saved in .*last\.pt"):
        train(tiny.config(tmp_path, *EVERY_STEP), Stops())
    last = tiny.checkpoints(tmp_path) / "last.pt"
    assert torch.load(last, weights_only=True)["step"] == 3
    assert not list(last.parent.glob("*.part"))


def test_a_stop_whose_write_fails_does_not_say_that_it_saved(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, 3)
    with pytest.raises(FileRefused, match=r"last\.pt: the disk is full"):
        train(tiny.config(tmp_path, "tracking.log_every_steps=1"), Stops())


def killed_between(words: list[str], step: int) -> None:
    """Train until the file of a step has its first name, and not yet the others."""

    def die(source: Path, path: Path) -> None:
        if torch.load(source, weights_only=True)["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        link(source, path)

    checkpoints.link = die
    train(load_config(None, words))


def test_a_run_killed_between_best_and_last_ends_as_one_that_was_not(trained: Path, tmp_path: Path) -> None:
    first_best = next(
        line["step"] for line in tiny.records(trained / "runs/tiny/log.jsonl") if line["kind"] == "epoch"
    )
    victim = processes.CONTEXT.Process(target=killed_between, args=(tiny.overrides(tmp_path), first_best))
    victim.start()
    victim.join(processes.WAIT_S)
    assert victim.exitcode == -signal.SIGKILL
    folder = tiny.checkpoints(tmp_path)
    assert torch.load(folder / "best.pt", weights_only=True)["step"] == first_best
    assert not (folder / "last.pt").exists()
    assert tiny.do("train", tmp_path) == 0
    for name in ("last.pt", "best.pt"):
        assert tiny.same_weights(folder / name, tiny.checkpoints(trained) / name)
    assert tiny.records(tmp_path / "runs/tiny/log.jsonl") == tiny.records(trained / "runs/tiny/log.jsonl")


def test_a_copy_on_the_host_shares_nothing_and_keeps_layouts() -> None:
    weight = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    totals = {"seen": 3}
    content = {"model": {"w": weight}, "totals": totals, "groups": [{"betas": (0.9, 0.99)}]}
    copy = copy_to_host(content, torch.device("cpu"))
    weight += 1
    totals["seen"] = 4
    assert copy["model"]["w"].flatten().tolist() == list(range(24))
    assert copy["model"]["w"].stride() == weight.stride()
    assert (copy["totals"], copy["groups"]) == ({"seen": 3}, [{"betas": (0.9, 0.99)}])


def test_a_copy_from_a_gpu_goes_to_pinned_memory_and_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stand-in: there is no GPU here."""
    did: list[str] = []
    empty_like, copy = torch.empty_like, torch.Tensor.copy_

    def pinned(tensor: torch.Tensor, *, device: str, pin_memory: bool) -> torch.Tensor:
        did.append(f"pinned {pin_memory}")
        return empty_like(tensor, device=device)

    def copied(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        did.append(f"copied without waiting {non_blocking}")
        return copy(self, source)

    class Stream:
        def synchronize(self) -> None:
            did.append("waited")

    monkeypatch.setattr(torch, "empty_like", pinned)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    copy_to_host({"a": torch.ones(2), "b": [torch.ones(3)], "c": 1}, torch.device("cuda"))
    assert did == [*["pinned True", "copied without waiting True"] * 2, "waited"]


class SlowSteps:
    """A clock by which a step takes four minutes; it is handed the records of the run."""

    minutes = 0

    def log(self, record: LogRecord) -> None:
        self.minutes = 4 * record["step"]

    def close(self) -> None:
        pass

    def monotonic(self) -> float:
        return 60.0 * self.minutes


def test_a_better_validation_is_a_checkpoint_that_a_run_goes_on_from(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 minutes are asked for, which begin anew there: at a look every other step, each better than the one before."""
    saved, linked = list[tuple[str, int]](), list[tuple[str, int]]()

    def note(path: Path, content: dict[str, Any]) -> None:
        saved.append((path.name, content["step"]))
        save(path, content)

    def note_link(first: Path, other: Path) -> None:
        linked.append((other.name, saved[-1][1]))
        link(first, other)

    steps = SlowSteps()
    monkeypatch.setattr(Best, "beats", lambda *_: True)
    monkeypatch.setattr(checkpoints, "save", note)
    monkeypatch.setattr(checkpoints, "link", note_link)
    monkeypatch.setattr(checkpointing, "time", steps)
    more = ["train.eval_every_steps=2", "train.checkpoint_every_minutes=10", "tracking.log_every_steps=1"]
    train(tiny.config(tmp_path, *more, "train.epochs=1"), steps)
    assert saved == [("best.pt", 2), ("best.pt", 4), ("best.pt", 5)]
    assert linked == [("last.pt", step) for step in (2, 4, 5)]


@pytest.mark.parametrize(
    ("resume", "said"),
    [("auto", "; the same command resumes"), ("never", "; it resumes with train.resume=auto")],
)
def test_a_run_that_is_stopped_says_how_it_goes_on(
    birds: Path, tmp_path: Path, resume: str, said: str
) -> None:
    class Signal:
        def log(self, _record: LogRecord) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        def close(self) -> None:
            pass

    with pytest.raises(Stopped) as stopped:
        train(tiny.config(tmp_path, f"train.resume={resume}", "tracking.log_every_steps=1"), Signal())
    assert str(stopped.value).endswith(f"last.pt{said}")
