"""A run goes on from its checkpoint with the same configuration, also one of an earlier version."""

import contextlib
import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from pipeline.common import files, locks
from pipeline.common.errors import CheckpointError
from pipeline.config.key_effects import KEY_EFFECTS
from pipeline.config.load import warn_renamed
from pipeline.config.schema import Config
from pipeline.distributed.process_group import Ranks
from pipeline.runs import history, status
from pipeline.runs.directory import RunDirectory
from pipeline.training import phases
from pipeline.training import resume as resume_module
from pipeline.training.optimizer import set_rates
from pipeline.training.setup import TrainingSetup
from pipeline.training.start import resume_or_start
from pipeline.training.state import Best
from pipeline.training.trainer import train
from tests.helpers import folders, tiny


def test_a_run_whose_files_have_a_key_under_its_old_name_goes_on(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["train.epochs=1", "schedule={name: plateau, min_factor: 0.1}"]
    assert tiny.do("train", tmp_path, *settings, "train.max_steps=2") == 0
    last = tiny.checkpoints(tmp_path) / "last.pt"
    content = torch.load(last, weights_only=True)
    schedule = content["config"]["schedule"]
    schedule["least_factor"] = schedule.pop("min_factor")
    torch.save(content, last)
    saved = last.parents[1] / "config.yaml"
    saved.write_text(saved.read_text().replace("min_factor", "least_factor"))
    warn_renamed.cache_clear()
    capsys.readouterr()
    assert tiny.do("train", tmp_path, *settings) == 0
    warnings = capsys.readouterr().err
    assert warnings.count("schedule.least_factor is now schedule.min_factor") == 1
    assert torch.load(last, weights_only=True)["step"] == 5  # 36 images, 8 a step
    assert "min_factor: 0.1" in saved.read_text()
    assert tiny.do("train", tmp_path, *settings, "schedule.min_factor=0.2") == 2
    assert "schedule.min_factor 0.1 -> 0.2" in capsys.readouterr().err


STEADY = ["schedule={name: constant}"]
GROUPS_AS_FORCED = {
    "optim.lr": ("0.01", "lr"),
    "optim.momentum": ("0.5", "momentum"),
    "optim.nesterov": ("false", "nesterov"),
    "optim.weight_decay": ("0.1", "weight_decay"),
}


def groups(config: Config) -> list[dict[str, Any]]:
    """The optimizer's groups as the next step of a run would have them."""
    setup = TrainingSetup(config, Ranks.single(torch.device("cpu")))
    state = resume_or_start(setup).state
    set_rates(state.optimizer, *phases.rates(config, state.phase, state.step, setup.clock))
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in state.optimizer.param_groups
    ]


@pytest.fixture(scope="module")
def stopped(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of two steps, with momentum and without."""
    tmp = tmp_path_factory.mktemp("stopped")
    for name, more in (("tiny", []), ("still", ["optim.momentum=0"])):
        assert tiny.do("train", tmp, *STEADY, *more, "train.max_steps=2", f"run.name={name}") == 0
    return tmp


def test_each_key_of_the_optimizer_that_may_be_forced_is_tried_here() -> None:
    forcible = {
        key
        for key, effect in KEY_EFFECTS.items()
        if key.startswith("optim.") and effect.on_resume == "forced"
    }
    assert forcible == {*GROUPS_AS_FORCED, "optim.clip_norm"}  # which is not in the groups


@pytest.mark.parametrize("key", GROUPS_AS_FORCED)
def test_a_forced_key_of_the_optimizer_is_in_its_groups(stopped: Path, key: str) -> None:
    text, name = GROUPS_AS_FORCED[key]
    forced = [*STEADY, f"{key}={text}", "train.resume_force=true"]
    before, after = groups(tiny.config(stopped, *STEADY)), groups(tiny.config(stopped, *forced))
    assert after != before
    assert after == groups(tiny.config(stopped, *forced, "train.resume=never"))
    assert any(group[name] == json.loads(text) for group in after)


def test_forced_momentum_is_nesterovs_where_there_was_none(stopped: Path) -> None:
    forced = [*STEADY, "run.name=still", "optim.momentum=0.9", "train.resume_force=true"]
    still = groups(tiny.config(stopped, *STEADY, "run.name=still", "optim.momentum=0"))
    assert {(group["momentum"], group["nesterov"]) for group in still} == {(0, False)}
    moving = groups(tiny.config(stopped, *forced))
    assert {(group["momentum"], group["nesterov"]) for group in moving} == {(0.9, True)}


def run_of(tmp: Path) -> RunDirectory:
    return RunDirectory(tmp / "runs" / "tiny")


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_that_another_process_trains_is_neither_moved_nor_read(
    birds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    resume: str,
) -> None:
    assert tiny.do("train", tmp_path, "train.max_steps=1") == 0
    monkeypatch.setattr(status, "READERS_WAIT_S", 0.0)
    monkeypatch.setattr(resume_module, "read", lambda _: pytest.fail("read before it is held"))
    with run_of(tmp_path).running():
        before = folders.digests(tmp_path)
        assert tiny.do("train", tmp_path, "train.max_steps=2", f"train.resume={resume}") == 2
        assert "is training this run; wait for its end, stop it, or take another run.name" in (
            capsys.readouterr().err
        )
        assert folders.digests(tmp_path) == before
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]


def test_a_start_that_waits_for_another_process_goes_on_from_what_that_one_saved_last(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (5, 10):
        name = f"run.name=step{step}"
        assert tiny.do("train", tmp_path, f"train.max_steps={step}", name) == 0
    run = run_of(tmp_path)
    shutil.copytree(tmp_path / "runs/step5", run.path)
    other_process = run.hold()
    about = json.loads(run.status_file.read_text())
    run.status_file.write_text(json.dumps({**about, "state": "running", "host": "elsewhere"}))
    wait = locks.Lock.wait.__func__  # type: ignore[attr-defined]
    waits: list[float] = []

    def other_process_ends(cls: type[locks.Lock], path: Path, at_most_s: float) -> locks.Lock | None:
        waits.append(at_most_s)
        if len(waits) == 2:
            shutil.copytree(tmp_path / "runs/step10", run.path, dirs_exist_ok=True)
            other_process.close()
        return wait(cls, path, 0)  # type: ignore[no-any-return]

    monkeypatch.setattr(locks.Lock, "wait", classmethod(other_process_ends))
    capsys.readouterr()
    settings = ["train.resume_force=true"]  # another run.name and max_steps
    assert tiny.do("train", tmp_path, *settings) == 0
    assert waits == [status.READERS_WAIT_S, status.OTHER_HOST_WAIT_S]
    assert "step 10 of 15" in capsys.readouterr().err
    assert tiny.same_weights(run.checkpoint("last"), tiny.checkpoints(trained) / "last.pt")


def test_a_start_that_fails_leaves_no_folder_and_puts_no_run_aside(birds: Path, tmp_path: Path) -> None:
    assert tiny.do("train", tmp_path, "model.name=resnet5") == 2
    assert not (tmp_path / "runs").exists()
    assert tiny.do("train", tmp_path, "train.max_steps=1") == 0
    before = folders.digests(tmp_path)
    assert tiny.do("train", tmp_path, "model.name=resnet5", "train.resume=never") == 2
    assert folders.digests(tmp_path) == before


def test_a_run_put_aside_keeps_its_status_and_can_be_held(birds: Path, tmp_path: Path) -> None:
    assert tiny.do("train", tmp_path, "train.max_steps=1") == 0
    run, hold = run_of(tmp_path), run_of(tmp_path).hold()
    waiting = run.status_file.with_suffix(".lock").open("a")  # of a process that came before the move
    resume_module.put_aside(run, hold)
    aside = RunDirectory(run.path.with_name("tiny.1"))
    with pytest.raises(CheckpointError, match="is training this run"):
        run.hold()
    with contextlib.closing(aside.hold()):
        assert aside.read_status().state == "finished"  # type: ignore[union-attr]
    hold.close()
    assert not run.path.exists()
    waiting.close()


def test_a_lock_whose_file_was_moved_is_taken_at_its_place(tmp_path: Path) -> None:
    """The holder moves the folder away while another process waits, with the file open."""
    path, opened = tmp_path / "run" / "lock", []
    first = locks.Lock.free(path)
    taken = locks._taken  # the moment between opening a file and locking it

    def move_first(stream: TextIO, kind: int) -> bool:
        if not opened:
            opened.append(stream)
            path.parent.rename(tmp_path / "aside")
            assert first is not None
            first.close()
        return taken(stream, kind)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(locks, "_taken", move_first)
        second = locks.Lock.free(path)
    assert second is not None
    assert path.is_file() and locks.held(path)
    assert not locks.held(tmp_path / "aside" / "lock")
    second.close()


def test_never_takes_no_folder_away_that_is_no_run(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = tmp_path / "runs" / "tiny"
    documents.mkdir(parents=True)
    (documents / "thesis.txt").write_text("years of work")
    assert tiny.do("train", tmp_path, "train.max_steps=1", "train.resume=never") == 2
    assert f"run.name: {documents} holds other files (thesis.txt (1 in all))" in capsys.readouterr().err
    assert [path.name for path in documents.iterdir()] == ["thesis.txt"]
    (documents / "thesis.txt").rename(documents / "schedule.png")  # of the verb `schedule`
    assert tiny.do("train", tmp_path, "train.max_steps=1", "train.resume=never") == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]
    assert (documents / "schedule.png").is_file()


def step_of(checkpoint: Path) -> int:
    step: int = torch.load(checkpoint, weights_only=True)["step"]
    return step


def starts(checkpoint: Path) -> tuple[history.TrainingProcess, ...]:
    """The history of a process that goes on from a checkpoint."""
    held = history.Held.of(torch.load(checkpoint, weights_only=True), checkpoint)
    return (*held.starts, replace(held.starts[-1], step=held.step, resumed_from=str(checkpoint)))


def test_a_run_that_goes_on_from_another_ones_checkpoint_has_its_best_and_last(
    trained: Path, tmp_path: Path
) -> None:
    """The other run is finished, so that this one takes no step."""
    there, here = tiny.checkpoints(trained), tmp_path / "runs/here/checkpoints"
    more = [f"train.resume={there / 'last.pt'}", "run.name=here"]
    assert tiny.do("train", tmp_path, *more) == 0
    assert (here / "best.pt").read_bytes() == (there / "best.pt").read_bytes()
    assert (here / "last.pt").read_bytes() == (there / "last.pt").read_bytes()
    run = RunDirectory(here.parent)
    assert run.config_file.is_file()
    assert [start.resumed_from for start in history.read(run)] == [None, str(there / "last.pt")]
    best = torch.load(here / "best.pt", weights_only=True)["best"]
    assert [record["val_top1"] for record in run.read_log() if record["kind"] == "val"] == [best["top1"]]


def test_a_finished_checkpoint_without_its_best_is_validated_as_it_is(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(tiny.checkpoints(trained) / "last.pt", weights_only=True)
    content["best"] = {"epoch": 1, "step": 5, "top1": 0.99, "loss": 0.1}
    alone = tmp_path / "alone.pt"
    torch.save(content, alone)
    assert tiny.do("train", tmp_path, f"train.resume={alone}", "run.name=here") == 0
    assert "the checkpoint of its best epoch, 1, is not beside it" in " ".join(
        capsys.readouterr().err.split()
    )
    assert step_of(tmp_path / "runs/here/checkpoints/best.pt") == content["step"]


def test_a_full_disk_leaves_a_run_that_goes_back_as_it_was(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.do("train", tmp_path, "train.keep_checkpoints=9", "train.checkpoint_every_steps=3") == 0
    folder = tiny.checkpoints(tmp_path)
    before = folders.digests(folder)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "last.pt")

    monkeypatch.setattr(files, "link_or_copy", refuse)
    assert tiny.do("train", tmp_path, f"train.resume={folder / 'step-0000010.pt'}") == 2
    assert folders.digests(folder) == before


def test_the_best_of_a_training_is_found_under_the_name_of_its_step(birds: Path, tmp_path: Path) -> None:
    """Also where the run has a later best one, that is damaged, and a file of another name."""
    assert tiny.do("train", tmp_path, "train.keep_checkpoints=9") == 0
    folder = tiny.checkpoints(tmp_path)
    fifth, tenth = folder / "step-0000005.pt", folder / "step-0000010.pt"
    best = {"epoch": 1, "step": 5, "top1": 0.99, "loss": 0.1}
    for path in (fifth, tenth):
        content = torch.load(path, weights_only=True)
        path.unlink()
        torch.save({**content, "best": best}, path)
    for name in ("best.pt", "step-mine.pt"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(b"damaged")
    found = resume_module.adopt(RunDirectory(folder.parent), starts(tenth), Best(**best))
    assert found == Best(**best)
    assert (folder / "best.pt").read_bytes() == fifth.read_bytes()
    assert (folder / "last.pt").read_bytes() == tenth.read_bytes()
    assert (
        (folder / "step-mine.pt").read_bytes() == (folder / "abandoned/best.1.pt").read_bytes() == b"damaged"
    )


def test_a_symbolic_link_to_a_checkpoint_is_gone_on_from(trained: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest.pt"
    link.symlink_to(tiny.checkpoints(trained) / "last.pt")
    run = RunDirectory(tmp_path / "here")
    content = torch.load(link, weights_only=True)
    resume_module.adopt(run, starts(link), Best(**content["best"]))
    assert not run.checkpoint("last").is_symlink()
    assert run.checkpoint("last").read_bytes() == link.read_bytes()


def test_a_run_that_goes_back_has_no_checkpoint_of_the_training_that_it_abandons(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = ["train.checkpoint_every_steps=3", "train.keep_checkpoints=3"]
    assert tiny.do("train", tmp_path, *every) == 0
    folder = tiny.checkpoints(tmp_path)
    assert sorted(map(step_of, folder.glob("step-*.pt"))) == [10, 12, 15]
    (folder / "best.pt").unlink()
    shutil.copy(folder / "last.pt", folder / "best.pt")
    back = folder / "step-0000010.pt"
    content = torch.load(back, weights_only=True)
    content["best"] = {"epoch": 1, "step": 5, "top1": 0.99, "loss": 0.1}
    torch.save(content, back)
    capsys.readouterr()
    assert tiny.do("train", tmp_path, *every, f"train.resume={back}", "train.max_steps=11") == 0
    assert "the checkpoint of its best epoch, 1, is not beside it; the best is chosen anew" in " ".join(
        capsys.readouterr().err.split()
    )
    assert sorted(map(step_of, folder.glob("step-*.pt"))) == [10, 11]
    assert (step_of(folder / "last.pt"), step_of(folder / "best.pt")) in {
        (11, 10),
        (11, 11),
    }  # of this training
    assert sorted(step_of(path) for path in (folder / "abandoned").iterdir()) == [12, 15, 15, 15]


def test_a_run_that_goes_back_to_its_best_keeps_it(birds: Path, tmp_path: Path) -> None:
    assert tiny.do("train", tmp_path, "train.max_steps=5") == 0
    folder = tiny.checkpoints(tmp_path)
    best = folder / "best.pt"
    shutil.copy(best, tmp_path / "kept.pt")
    config, run = tiny.config(tmp_path), RunDirectory(folder.parent)
    found = resume_module.adopt(run, starts(best), Best(**torch.load(best, weights_only=True)["best"]))
    assert found is not None and found.step == 5
    assert best.read_bytes() == (tmp_path / "kept.pt").read_bytes() == (folder / "last.pt").read_bytes()
    assert config.run_dir == run.path


def test_a_run_that_goes_on_from_another_one_keeps_no_log_of_the_training_that_it_leaves(
    birds: Path, tmp_path: Path
) -> None:
    assert tiny.do("train", tmp_path, "run.name=a", "train.max_steps=10") == 0
    assert tiny.do("train", tmp_path, "optim.lr=0.001") == 0
    run, path = run_of(tmp_path), tiny.checkpoints(tmp_path, "a") / "last.pt"
    left = run.log_file.read_bytes()
    assert tiny.do("train", tmp_path, f"train.resume={path}") == 0
    best = torch.load(path, weights_only=True)["best"]["step"]
    kinds = [(record["kind"], record["step"]) for record in run.read_log() if record["step"] <= 10]
    assert kinds == [("val", best)]
    assert (run.checkpoints / "abandoned/log.1.jsonl").read_bytes() == left


def test_a_run_that_goes_back_has_its_log_until_there_and_each_validation_once(
    trained: Path, tmp_path: Path
) -> None:
    more = ["train.keep_checkpoints=3"]
    assert tiny.do("train", tmp_path, *more) == 0
    back = tiny.checkpoints(tmp_path) / "step-0000010.pt"
    assert tiny.do("train", tmp_path, *more, f"train.resume={back}") == 0
    assert tiny.records(run_of(tmp_path).log_file) == tiny.records(run_of(trained).log_file)


def test_a_path_is_gone_on_from_after_a_restart_before_it_was(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is preempted while it loads, in a folder that holds a run already."""
    assert tiny.do("train", tmp_path, "run.name=a", "train.max_steps=5") == 0
    assert tiny.do("train", tmp_path, "train.max_steps=13") == 0
    run, path = run_of(tmp_path), tiny.checkpoints(tmp_path, "a") / "last.pt"
    more = ["train.max_steps=14", f"train.resume={path}"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert resume_module.requested(tiny.config(tmp_path, *more)) == str(path)
    assert tiny.do("train", tmp_path, *more) == 0
    assert [start.step for start in history.read(run)] == [0, 5]
    assert resume_module.requested(tiny.config(tmp_path, *more)) == "auto"


def test_a_restart_goes_on_with_what_a_path_has_become(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice before anything is saved behind the path's checkpoint, and once after that."""
    assert tiny.do("train", tmp_path, "run.name=a", "train.max_steps=4") == 0
    run, path = run_of(tmp_path), tiny.checkpoints(tmp_path, "a") / "last.pt"
    config = tiny.config(tmp_path, f"train.resume={path}")
    for step in (5, 5, 12):
        with pytest.raises(tiny.EndOfPower):
            train(config, tiny.EndOfPower(step))
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train(config)
    last = str(run.checkpoint("last"))
    assert [(start.step, start.resumed_from) for start in history.read(run)] == [
        *((0, None), (4, str(path)), (4, last), (10, last)),
    ]
    assert tiny.same_weights(run.checkpoint("last"), tiny.checkpoints(trained) / "last.pt")


def test_a_finished_run_without_its_last_checkpoint_is_not_trained_anew(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    last, log = tiny.checkpoints(tmp_path) / "last.pt", tmp_path / "runs/tiny/log.jsonl"
    before = log.read_bytes()
    last.unlink()
    assert tiny.do("train", tmp_path, "optim.lr=0.5") == 2
    said = capsys.readouterr().err
    assert f"{last}: missing, and {tmp_path / 'runs/tiny'} was finished or evaluated; bring it back" in said
    assert log.read_bytes() == before


def test_a_run_without_its_last_checkpoint_goes_on_from_its_best_one(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, "train.epochs=2", "train.max_steps=5") == 0
    checkpoints = tiny.checkpoints(tmp_path)
    (checkpoints / "last.pt").unlink()
    stopped = tmp_path / "runs/tiny/status.json"
    stopped.write_text(stopped.read_text().replace('"finished"', '"stopped"'))
    assert tiny.do("train", tmp_path, "train.epochs=2") == 0
    assert f"{checkpoints / 'last.pt'}: missing; going on from best.pt" in capsys.readouterr().err
    assert torch.load(checkpoints / "last.pt", weights_only=True)["step"] == 10
