import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipeline.common import signals
from pipeline.common.errors import CheckpointError, Stopped
from pipeline.runs.checkpoints import FORMAT, read
from pipeline.runs.log import LogRecord
from pipeline.training.trainer import train
from pipeline.training.validation import Validator
from tests.helpers import own_pictures, processes, tiny

STEPS_PER_EPOCH = 5  # 36 training images in batches of at most 8
LAST = 3 * STEPS_PER_EPOCH


def test_the_run_directory_holds_what_the_readme_says(trained: Path) -> None:
    run = trained / "runs" / "tiny"
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "environment.json",
        "log.jsonl",
        "checkpoints",
    }
    for name in ("last.pt", "best.pt"):
        content = torch.load(run / "checkpoints" / name, weights_only=True)
        assert {"model", "epoch", "step"} <= content.keys()
    last = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert (last["epoch"], last["step"]) == (3, LAST)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["weights"] == {"source": "random", "tensors": 0, "share": 0.0}


def test_the_log_has_a_line_an_epoch_with_the_schedules_rate(trained: Path) -> None:
    epochs = [line for line in tiny.records(trained / "runs/tiny/log.jsonl") if line["kind"] == "epoch"]
    assert [line["step"] for line in epochs] == [5, 10, 15]
    lr = 0.02 * (1 + torch.cos(torch.tensor(torch.pi * 4 / 15)).item()) / 2  # of the first epoch's last step
    assert epochs[0]["lr"] == pytest.approx(lr)
    assert epochs[2]["train_loss"] < epochs[0]["train_loss"]


def test_best_is_the_epoch_that_validation_chose(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    epochs = [line for line in tiny.records(trained / "runs/tiny/log.jsonl") if line["kind"] == "epoch"]
    chosen = max(epochs, key=lambda line: (line["val_top1"], -line["val_loss"]))
    best = torch.load(tiny.checkpoints(trained) / "best.pt", weights_only=True)
    assert best["step"] == chosen["step"]
    assert tiny.do("train", trained) == 0  # already finished: nothing to do but to say where it is
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["best_epoch"], said["chosen_by"]) == (chosen["epoch"], "validation")


def test_two_runs_of_one_seed_are_identical_and_another_seed_differs(
    trained: Path, birds: Path, tmp_path: Path
) -> None:
    assert tiny.do("train", tmp_path) == 0
    assert tiny.same_weights(tiny.checkpoints(tmp_path) / "last.pt", tiny.checkpoints(trained) / "last.pt")
    other = [tiny.own_data(tmp_path), "seed=1", "run.name=other"]
    assert tiny.do("data", tmp_path, *other) == 0
    assert tiny.do("train", tmp_path, *other) == 0
    assert not tiny.same_weights(
        tiny.checkpoints(tmp_path, "other") / "last.pt", tiny.checkpoints(trained) / "last.pt"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_exits_75_and_the_run_ends_as_if_it_had_not_come(
    trained: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = tiny.arguments("train", tmp_path, "tracking.log_every_steps=1")
    assert processes.interrupt(words, tiny.log_reaches(tmp_path, 7), number) == 75
    step = torch.load(tiny.checkpoints(tmp_path) / "last.pt", weights_only=True)["step"]
    assert 7 <= step < LAST
    assert tiny.do("train", tmp_path, "tracking.log_every_steps=1") == 0
    assert tiny.same_weights(tiny.checkpoints(tmp_path) / "last.pt", tiny.checkpoints(trained) / "last.pt")


@pytest.mark.parametrize("step", [3, 5, 8, 13])
def test_a_run_killed_at_any_step_resumes_to_the_same_weights_and_log(
    trained: Path, tmp_path: Path, step: int
) -> None:
    words = tiny.arguments("train", tmp_path, "tracking.log_every_steps=1")
    assert processes.interrupt(words, tiny.log_reaches(tmp_path, step), signal.SIGKILL) == -signal.SIGKILL
    with (tmp_path / "runs/tiny/log.jsonl").open("a") as log:
        log.write('{"kind": "step", "st')  # the half line of a write that was cut
    assert tiny.do("train", tmp_path, "tracking.log_every_steps=1") == 0
    for name in ("last.pt", "best.pt"):
        assert tiny.same_weights(tiny.checkpoints(tmp_path) / name, tiny.checkpoints(trained) / name)
    log = tiny.records(tmp_path / "runs/tiny/log.jsonl")
    assert [line["step"] for line in log if line["kind"] == "step"] == list(range(1, LAST + 1))
    expected = tiny.records(trained / "runs/tiny/log.jsonl")
    assert [line for line in log if line["kind"] == "epoch"] == [
        line for line in expected if line["kind"] == "epoch"
    ]


LOOKS = ["train.eval_every_steps=2", "tracking.log_every_steps=1", "train.checkpoint_every_steps=3"]


@pytest.fixture(scope="module")
def looked(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run that was validated every two steps."""
    tmp = tmp_path_factory.mktemp("looked")
    assert tiny.do("train", tmp, *LOOKS) == 0
    return tmp


def test_looks_within_epochs_change_no_weight_and_the_best_of_all_is_kept(
    trained: Path, looked: Path
) -> None:
    assert tiny.same_weights(tiny.checkpoints(looked) / "last.pt", tiny.checkpoints(trained) / "last.pt")
    log = tiny.records(looked / "runs/tiny/log.jsonl")
    within = [line for line in log if line["kind"] == "val"]
    assert [line["step"] for line in within] == [2, 4, 6, 8, 12, 14]  # at 10 an epoch ends
    assert [line["epoch"] for line in within] == pytest.approx([step / 5 for step in (2, 4, 6, 8, 12, 14)])
    epochs = [line for line in log if line["kind"] == "epoch"]
    assert epochs == [
        line for line in tiny.records(trained / "runs/tiny/log.jsonl") if line["kind"] == "epoch"
    ]
    chosen = max(within + epochs, key=lambda line: (line["val_top1"], -line["val_loss"]))
    best = torch.load(tiny.checkpoints(looked) / "best.pt", weights_only=True)
    assert best["best"] == {
        "epoch": -(-chosen["step"] // STEPS_PER_EPOCH),
        "step": chosen["step"],
        "top1": chosen["val_top1"],
        "loss": chosen["val_loss"],
    }
    assert best["step"] == chosen["step"]


def test_a_look_says_what_evaluation_says_of_that_step(
    looked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = torch.load(tiny.checkpoints(looked) / "best.pt", weights_only=True)["best"]
    path = tiny.checkpoints(looked) / "best.pt"
    assert tiny.do("eval", tmp_path, *LOOKS, "eval.split=val", f"eval.checkpoint={path}") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["top1"]) == (best["step"], pytest.approx(best["top1"]))
    assert found["nll"] == pytest.approx(best["loss"], rel=1e-5)


@pytest.mark.parametrize(("step", "number"), [(7, signal.SIGKILL), (12, signal.SIGTERM)])
def test_a_run_with_looks_that_is_stopped_ends_as_one_that_was_not(
    looked: Path, tmp_path: Path, step: int, number: signal.Signals
) -> None:
    assert (
        processes.interrupt(
            tiny.arguments("train", tmp_path, *LOOKS), tiny.log_reaches(tmp_path, step), number
        )
        != 0
    )
    assert tiny.do("train", tmp_path, *LOOKS) == 0
    for name in ("last.pt", "best.pt"):
        assert tiny.same_weights(tiny.checkpoints(tmp_path) / name, tiny.checkpoints(looked) / name)
        one, other = (
            torch.load(tiny.checkpoints(folder) / name, weights_only=True) for folder in (tmp_path, looked)
        )
        assert (one["step"], one["best"], one["totals"]) == (other["step"], other["best"], other["totals"])
    assert tiny.records(tmp_path / "runs/tiny/log.jsonl") == tiny.records(looked / "runs/tiny/log.jsonl")


def test_the_best_is_never_of_a_process_whose_steps_are_lost(birds: Path, tmp_path: Path) -> None:
    """It is killed behind a look; the next one trains on at another rate."""
    looks = ["train.eval_every_steps=2", "tracking.log_every_steps=1"]
    with pytest.raises(tiny.EndOfPower):
        train(tiny.config(tmp_path, *looks), tiny.EndOfPower(9))
    assert tiny.do("train", tmp_path, *looks, "optim.lr=1e-6", "train.resume_force=true") == 0
    best, last = (read(tiny.checkpoints(tmp_path) / name) for name in ("best.pt", "last.pt"))
    assert (best["step"], best["best"]) == (last["best"]["step"], last["best"])


def test_a_stop_that_comes_within_a_look_waits_for_its_end(
    looked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, steps = Validator.measure, []

    def stopped_in_the_second(self: Validator) -> tuple[float, float]:
        steps.append(self.state.step)
        if len(steps) == 2:
            self.checkpointer.stop.name = "SIGTERM"
        return measure(self)

    monkeypatch.setattr(Validator, "measure", stopped_in_the_second)
    assert tiny.do("train", tmp_path, *LOOKS) == 75
    assert tiny.records(tmp_path / "runs/tiny/log.jsonl")[-1]["kind"] == "val"
    monkeypatch.undo()
    assert tiny.do("train", tmp_path, *LOOKS) == 0
    assert tiny.records(tmp_path / "runs/tiny/log.jsonl") == tiny.records(looked / "runs/tiny/log.jsonl")
    assert tiny.same_weights(tiny.checkpoints(tmp_path) / "best.pt", tiny.checkpoints(looked) / "best.pt")


def test_max_steps_stops_validates_and_can_be_raised(trained: Path, tmp_path: Path) -> None:
    assert tiny.do("train", tmp_path, "train.max_steps=3") == 0
    assert torch.load(tiny.checkpoints(tmp_path) / "best.pt", weights_only=True)["step"] == 3
    assert tiny.do("train", tmp_path) == 0
    assert tiny.same_weights(tiny.checkpoints(tmp_path) / "last.pt", tiny.checkpoints(trained) / "last.pt")


PLATEAU = ["schedule={name: plateau, patience_epochs: 0, gamma: 0.5}", "tracking.log_every_steps=1"]


@pytest.fixture
def on_a_plateau(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation finds the same at each look."""
    monkeypatch.setattr(Validator, "measure", lambda _: (0.5, 1.0))


def epochs_of(tmp: Path, name: str = "tiny") -> list[dict[str, Any]]:
    return [line for line in tiny.records(tmp / f"runs/{name}/log.jsonl") if line["kind"] == "epoch"]


def test_an_epochs_rate_is_that_of_its_last_step_also_where_a_plateau_lowers_the_next(
    birds: Path, tmp_path: Path, on_a_plateau: None
) -> None:
    assert tiny.do("train", tmp_path, *PLATEAU) == 0
    log = tiny.records(tmp_path / "runs/tiny/log.jsonl")
    of_steps = {line["step"]: line["lr"] for line in log if line["kind"] == "step"}
    found = {line["step"]: line["lr"] for line in epochs_of(tmp_path)}
    assert found == {5: 0.02, 10: 0.02, 15: 0.01} == {step: of_steps[step] for step in found}


def test_an_epoch_that_max_steps_cuts_is_one_epoch_to_a_plateau_and_whole_once_the_run_goes_on(
    birds: Path, tmp_path: Path, on_a_plateau: None
) -> None:
    assert tiny.do("train", tmp_path, *PLATEAU, "run.name=whole") == 0
    assert tiny.do("train", tmp_path, *PLATEAU, "train.max_steps=3") == 0
    cut = (tmp_path / "runs/tiny/log.jsonl").read_bytes()
    assert [line["step"] for line in epochs_of(tmp_path)] == [3]
    assert tiny.do("train", tmp_path, *PLATEAU, "train.max_steps=3") == 0  # finished: nothing to do
    assert (tmp_path / "runs/tiny/log.jsonl").read_bytes() == cut
    assert tiny.do("train", tmp_path, *PLATEAU) == 0
    assert epochs_of(tmp_path)[1:] == epochs_of(tmp_path, "whole")
    one, other = (tiny.checkpoints(tmp_path, name) / "last.pt" for name in ("whole", "tiny"))
    assert tiny.same_weights(one, other)
    contents = [torch.load(path, weights_only=True) for path in (one, other)]
    assert contents[0]["phase"] == contents[1]["phase"]
    assert contents[0]["totals"] == contents[1]["totals"]


def test_a_phase_that_is_over_before_it_begins_takes_no_step(
    birds: Path, tmp_path: Path, on_a_plateau: None
) -> None:
    phases = (
        "optim.phases=[{name: adam, lr: 1e-3, until: {name: plateau, epochs: 1}}, "
        "{name: adamw, lr: 1e-3, until: 1}, {name: sgd, lr: 0.01}]"
    )
    assert tiny.do("train", tmp_path, phases, "schedule={name: constant}") == 0
    log = tiny.records(tmp_path / "runs/tiny/log.jsonl")
    begun = [(line["phase"], line["step"]) for line in log if line["kind"] == "phase"]
    assert begun == [("sgd", 11)]


def test_what_needs_validation_is_refused_where_no_image_validates(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = [tiny.own_data(tmp_path), "data.folds=50", "data.fold=49"]  # of 7 images a class
    assert tiny.do("data", tmp_path, *folds) == 0
    for needs in (
        "train.early_stop_epochs=1",
        "train.eval_every_steps=2",
        PLATEAU[0],
        "optim.phases=[{name: adam, until: {name: plateau, epochs: 1}}, {name: sgd}]",
    ):
        capsys.readouterr()
        assert tiny.do("train", tmp_path, *folds, needs) == 2
        assert "needs validation, and no image of the data set validates" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_without_validation_the_last_epoch_is_reported(birds: Path, tmp_path: Path) -> None:
    without = [tiny.own_data(tmp_path), "data.val_fraction=0", "train.epochs=2"]
    assert tiny.do("data", tmp_path, *without) == 0
    assert tiny.do("train", tmp_path, *without) == 0
    best = torch.load(tiny.checkpoints(tmp_path) / "best.pt", weights_only=True)
    assert (best["epoch"], best["best"]["top1"]) == (2, None)
    assert tiny.same_weights(tiny.checkpoints(tmp_path) / "best.pt", tiny.checkpoints(tmp_path) / "last.pt")


def test_resume_never_puts_the_earlier_run_aside(birds: Path, tmp_path: Path) -> None:
    short = "train.max_steps=1"
    assert tiny.do("train", tmp_path, short) == 0
    assert tiny.do("train", tmp_path, short, "train.resume=never", "optim.lr=0.01") == 0
    assert tiny.do("train", tmp_path, short, "train.resume=never") == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"tiny", "tiny.1", "tiny.2"}
    assert tiny.same_weights(
        tiny.checkpoints(tmp_path) / "last.pt", tiny.checkpoints(tmp_path, "tiny.1") / "last.pt"
    )


def test_resume_from_a_path_goes_on_from_there(trained: Path, tmp_path: Path) -> None:
    assert tiny.do("train", tmp_path, "train.max_steps=4") == 0
    start = f"train.resume={tiny.checkpoints(tmp_path) / 'last.pt'}"
    assert tiny.do("train", tmp_path, "run.name=copy", start) == 0
    assert tiny.same_weights(
        tiny.checkpoints(tmp_path, "copy") / "last.pt", tiny.checkpoints(trained) / "last.pt"
    )


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["optim.lr=0.5"], "optim.lr 0.02 -> 0.5"),
        (["train.epochs=4"], "train.epochs 3 -> 4"),
        (
            ["train.resume=nowhere.pt"],
            "train.resume=nowhere.pt: no such file; give auto, never or the path of",
        ),
        (["train.resume=pyproject.toml"], "pyproject.toml: damaged (cut short?), or not a checkpoint"),
        (["model.name=resnet5", "run.name=x"], "did you mean"),
        (
            ["model.weights=missing.pth", "model.pretrained=true", "run.name=x"],
            "missing.pth: no such weights file",
        ),
        (["data.root=nowhere", "run.name=x"], "missing; run `plumage data` with the same --config and keys"),
        (["train.device=cuda", "run.name=x"], "no CUDA device is visible"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_exit_code_2(
    trained: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    before = (tiny.checkpoints(trained) / "last.pt").read_bytes()
    assert tiny.do("train", trained, *more) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("error:") == 1
    assert "Traceback" not in said.err
    assert said.out == ""
    assert (tiny.checkpoints(trained) / "last.pt").read_bytes() == before


def test_a_checkpoint_of_another_class_count_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = ["data.synthetic.species=5", f"data.root={tmp_path / 'data'}"]
    assert tiny.do("data", tmp_path, *fewer) == 0
    source = tiny.checkpoints(trained) / "last.pt"
    for verb, key in (("train", "train.resume"), ("eval", "eval.checkpoint")):
        assert tiny.do(verb, tmp_path, *fewer, f"{key}={source}") == 2
        assert "was trained on 6 classes and the data has 5" in capsys.readouterr().err


def test_a_checkpoint_holds_no_code_and_a_pickle_with_code_is_refused(trained: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch evil",)

    torch.save({"format": FORMAT, "model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"damaged \(cut short\?\)"):
        read(tmp_path / "evil.pt")
    assert not Path("evil").exists()


def test_going_on_needs_no_pretrained_weights(birds: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.pth"
    assert tiny.do("train", tmp_path, "train.max_steps=1", "run.name=source") == 0
    state = tiny.weights(tiny.checkpoints(tmp_path, "source") / "last.pt")
    torch.save(state, first)
    pretrained = ["model.pretrained=true", f"model.weights={first}"]
    assert tiny.do("train", tmp_path, *pretrained, "train.max_steps=2") == 0
    first.unlink()
    assert tiny.do("train", tmp_path, *pretrained, "train.max_steps=4") == 0
    weights = json.loads((tmp_path / "runs/tiny/environment.json").read_text())["weights"]
    assert (weights["source"], weights["share"]) == (str(first), 1.0)


class Hang:
    """A tracker that suspends the loader processes at a step, and sends SIGTERM once no batch is left."""

    def __init__(self, step: int) -> None:
        self._step = step

    def log(self, record: LogRecord) -> None:
        if record["kind"] == "step" and record["step"] == self._step:
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGSTOP)
            threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    def close(self) -> None:
        pass


def test_a_signal_while_no_batch_comes_saves_and_stops(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "TICK_S", 0.05)
    monkeypatch.setattr(signals, "GRACE_S", 0.2)
    words = ["data.workers=1", "tracking.log_every_steps=1"]
    with pytest.raises(Stopped, match=r"stopped by SIGTERM at step [2-4] of 15, saved in .*last\.pt"):
        train(tiny.config(tmp_path, *words), Hang(2))
    assert not multiprocessing.active_children()
    assert tiny.do("train", tmp_path) == 0
    assert tiny.same_weights(tiny.checkpoints(tmp_path) / "last.pt", tiny.checkpoints(trained) / "last.pt")


def test_statistics_that_are_not_finite_are_a_diverged_training_though_no_loss_is(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variance that overflows makes the activations zero, and the loss stays as it was."""
    weights = timm.create_model("test_resnet").state_dict()
    weights["layer4.0.conv1.weight"] *= 1e25
    torch.save(weights, tmp_path / "huge.pth")
    start = ["model.pretrained=true", f"model.weights={tmp_path / 'huge.pth'}"]
    assert tiny.do("train", tmp_path, *start, "train.epochs=1") == 2
    error = capsys.readouterr().err
    assert (
        "error: step 5: training has diverged, and numbers are not finite, in backbone.layer4.0.bn1.running_var"
        in error
    )
    assert not list(tiny.checkpoints(tmp_path).glob("*.pt"))


def test_an_epoch_is_called_the_best_only_where_something_validates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count, is_said in ((2, False), (5, True)):
        birds = own_pictures.class_folders(tmp_path / f"birds{count}", ["crow", "gull"], count)
        for verb in ("data", "train"):
            assert own_pictures.do(verb, tmp_path, "folder", birds, f"run.name=of{count}") == 0
        said = capsys.readouterr().err
        assert "epoch 1/1" in said
        assert ("best so far" in said) == is_said
