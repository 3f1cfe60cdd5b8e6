"""Whole runs with everything on: exact over kills, phases that switch, and what stops a run early."""

import json
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.config.load import load_config
from pipeline.data.loader import Batch
from pipeline.models import classifier
from pipeline.models.build import build_model, without_weights
from pipeline.runs.log import read_log
from pipeline.training.mixing import semantic_share
from pipeline.training.optimizer import build_optimizer, parameter_groups
from pipeline.training.probe_start import check_head
from tests.helpers import processes, tiny

EVERYTHING = [
    "optim.phases=[{name: adam, lr: 2e-3, until: 1}, {name: sgd, carry_momentum: true}]",
    "schedule={name: plateau, patience_epochs: 0, gamma: 0.5, warmup_epochs: 0.5, momentum_warmup_epochs: 1}",
    "train.mix=[{name: mixup, probability: 0.4}, {name: snapmix, probability: 0.3}, "
    "{name: activation_mask, probability: 0.3}]",
    "train.ema_decay=0.9",
    "model.mid_level_head=true",
    "model.pool=gem",
    "model.dropout=0.2",
    "optim.clip_norm=1",
    "optim.layer_decay=0.8",
    "optim.frozen_stages=2",
    "optim.unfreeze_epoch=2",
    "optim.batch_size=4",
    "optim.effective_batch_size=8",
    "data.sampler=class_balanced",
    "data.auto_augment=trivial",
    "data.random_erasing=0.3",
    "data.progressive=[{until_epoch: 1, image_px: 24}]",
    "tracking.log_every_steps=1",
    "train.eval_every_steps=2",
]


ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_network_of_a_recipe_is_built_takes_its_pictures_and_has_the_groups_of_its_optimizer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(path)
    monkeypatch.setattr(classifier, "autocast", lambda *_: nullcontext())  # there is none for meta
    with torch.device("meta"):  # shapes alone
        model, _ = build_model(without_weights(config.model), 200)
        side = config.data.image_px
        logits = model.eval()(torch.zeros(2, 3, side, side, dtype=torch.uint8))
        phase = config.optim.resolved_phases[0]
        groups = parameter_groups(model, config.optim, weight_decay=phase.weight_decay)
        build_optimizer(groups, phase, lr=phase.lr or config.optim.lr)
        if any(way.follows_activation for way in config.train.mix):
            batch = Batch(
                torch.zeros(2, 3, side, side, dtype=torch.uint8), torch.tensor([0, 1]), torch.tensor([0, 1])
            )
            assert semantic_share(model, batch).shape == (2, side, side)
    assert logits.shape == (2, 200)
    if config.train.start_from == "probe":
        check_head(model)
    layers = {group["lr_multiplier"] for group in groups}
    assert (len(layers) > 10) == (config.optim.layer_decay < 1)


@pytest.fixture(scope="module")
def everything(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("everything")
    assert tiny.do("train", tmp, *EVERYTHING) == 0
    return tmp


def log(tmp: Path, name: str = "tiny") -> list[dict[str, object]]:
    return tiny.records(tmp / "runs" / name / "log.jsonl")


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not_by_the_script_that_anyone_can_run() -> None:
    done = tiny.launch([sys.executable, "scripts/kill_test.py", "--kills", "3", "--seed", "1"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 within a step, 1 within a checkpoint's write, 1 within validation" in done.stdout
    assert "switches to ['sgd']" in done.stdout
    assert "weights, average, phase and log are identical" in done.stdout


@pytest.mark.parametrize("step", [3, 8])
def test_with_everything_on_a_run_resumes_to_the_same_weights_and_log(
    everything: Path, tmp_path: Path, step: int
) -> None:
    """Killed before the switch from Adam to SGD, and after it; with checkpoints in mid-epoch."""
    more = [*EVERYTHING, "train.checkpoint_every_steps=2", "train.keep_checkpoints=2"]
    logged, last = tiny.log_reaches(tmp_path, step), tiny.checkpoints(tmp_path) / "last.pt"

    def in_mid_epoch() -> bool:
        """The log and the checkpoint, which a thread writes, are that far."""
        return logged() and last.is_file() and torch.load(last, weights_only=True)["step"] % 5 != 0

    killed = processes.interrupt(tiny.arguments("train", tmp_path, *more), in_mid_epoch, signal.SIGKILL)
    assert killed == -signal.SIGKILL
    assert tiny.do("train", tmp_path, *more) == 0
    for name in ("last.pt", "best.pt"):
        ours, theirs = (
            torch.load(tiny.checkpoints(tmp) / name, weights_only=True) for tmp in (tmp_path, everything)
        )
        for key in ("model", "ema"):
            assert all(torch.equal(tensor, theirs[key][place]) for place, tensor in ours[key].items())
    assert log(tmp_path) == log(everything)
    kept = sorted(path.name for path in tiny.checkpoints(tmp_path).glob("step-*.pt"))
    assert kept == ["step-0000014.pt", "step-0000015.pt"]


def test_sigterm_in_validation_saves_exits_75_and_the_run_ends_as_if_it_had_not_come(
    trained: Path, tmp_path: Path
) -> None:
    more = ["tracking.log_every_steps=1", "eval.batch_size=1"]
    killed = processes.interrupt(
        tiny.arguments("train", tmp_path, *more), tiny.log_reaches(tmp_path, 5), signal.SIGTERM
    )
    assert killed == 75
    assert [record["kind"] for record in log(tmp_path)] == ["step"] * 5  # the epoch is not closed yet
    assert torch.load(tiny.checkpoints(tmp_path) / "last.pt", weights_only=True)["step"] == 5
    assert tiny.do("train", tmp_path, *more) == 0
    assert tiny.same_weights(tiny.checkpoints(tmp_path) / "last.pt", tiny.checkpoints(trained) / "last.pt")


def test_sigterm_while_the_store_is_built_exits_75_and_the_same_command_goes_on(tmp_path: Path) -> None:
    more = [f"data.root={tmp_path / 'data'}", "data.synthetic.images_per_species=200"]
    begun = lambda: any((tmp_path / "data").glob("*/store*.part"))  # noqa: E731
    assert processes.interrupt(tiny.arguments("data", tmp_path, *more), begun, signal.SIGTERM) == 75
    assert not list((tmp_path / "data").glob("*/store*.stamp.json"))
    assert tiny.do("data", tmp_path, *more) == 0
    assert list((tmp_path / "data").glob("*/store*.stamp.json"))


def test_the_switch_stands_in_the_log_the_checkpoint_and_the_epochs(everything: Path) -> None:
    (switch,) = (record for record in log(everything) if record["kind"] == "phase")
    assert switch == {"kind": "phase", "step": 6, "epoch": 1.0, "phase": "sgd", "lr": 0.02}
    epochs = [record for record in log(everything) if record["kind"] == "epoch"]
    assert [record["phase"] for record in epochs] == ["adam", "sgd", "sgd"]
    last = torch.load(tiny.checkpoints(everything) / "last.pt", weights_only=True)
    assert (last["phase"]["index"], last["phase"]["start_step"]) == (1, 5)
    assert "momentum_buffer" in last["optimizer"]["state"][0]


def test_every_record_has_rates_norm_and_memory(everything: Path) -> None:
    lines = read_log(everything / "runs/tiny/log.jsonl")
    steps, epochs = ([line for line in lines if line["kind"] == kind] for kind in ("step", "epoch"))
    assert all(line["lr"] > 0 and line["grad_norm"] > 0 and line["loss"] > 0 for line in steps)
    for line in epochs:
        assert line["grad_norm"] > 0
        assert 0 < line["data_wait"] < 1
        assert line["memory_gib"] > 0.1
    assert steps[0]["momentum"] == 0.0  # it warms up from 0
    assert (everything / "runs/tiny/curves.png").read_bytes()[:4] == b"\x89PNG"


def test_frozen_stages_stay_as_they_were_until_their_epoch(birds: Path, tmp_path: Path) -> None:
    frozen = ["optim.frozen_stages=3", "optim.unfreeze_epoch=1"]
    for name, steps in (("begin", 1), ("frozen", 5), ("thawed", 6)):
        assert tiny.do("train", tmp_path, *frozen, f"run.name={name}", f"train.max_steps={steps}") == 0
    begin, still, thawed = (
        tiny.weights(tiny.checkpoints(tmp_path, name) / "last.pt") for name in ("begin", "frozen", "thawed")
    )
    stem = [name for name in begin if name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))]
    assert len(stem) > 10
    assert all(torch.equal(begin[name], still[name]) for name in stem)
    above = next(name for name in begin if name.startswith("backbone.layer4") and begin[name].ndim == 4)
    assert not torch.equal(begin[above], still[above])
    assert not torch.equal(still[stem[0]], thawed[stem[0]])


def test_more_frozen_stages_than_the_body_has_is_one_sentence(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, "optim.frozen_stages=6") == 2
    assert "6 of the 6 stages of test_resnet" in capsys.readouterr().err


def test_swats_switches_by_itself_with_a_rate_of_its_own(birds: Path, tmp_path: Path) -> None:
    rule = "{name: swats, tolerance: 1.0}"
    swats = f"optim.phases=[{{name: adam, lr: 1e-3, until: {rule}}}, {{name: sgd, momentum: 0.8}}]"
    assert tiny.do("train", tmp_path, swats, "tracking.log_every_steps=1") == 0
    (switch,) = (record for record in log(tmp_path) if record["kind"] == "phase")
    last = torch.load(tiny.checkpoints(tmp_path) / "last.pt", weights_only=True)
    assert last["phase"]["lr"] == switch["lr"]
    assert 1e-6 < switch["lr"] < 1  # type: ignore[operator]
    killed = tmp_path / "killed"
    words = tiny.arguments(
        "train", killed, swats, "tracking.log_every_steps=1", "train.checkpoint_every_steps=1"
    )
    assert processes.interrupt(words, tiny.log_reaches(killed, 2), signal.SIGTERM) == 75
    assert (
        tiny.do("train", killed, swats, "tracking.log_every_steps=1", "train.checkpoint_every_steps=1") == 0
    )
    assert tiny.same_weights(tiny.checkpoints(killed) / "last.pt", tiny.checkpoints(tmp_path) / "last.pt")


def test_early_stopping_ends_the_run_and_it_stays_ended(birds: Path, tmp_path: Path) -> None:
    # A learning rate this small changes nothing that validation could see.
    more = ["optim.lr=1e-12", "train.epochs=9", "train.early_stop_epochs=2", "model.freeze_batchnorm=true"]
    for _ in range(2):
        assert tiny.do("train", tmp_path, *more) == 0
        epochs = [record for record in log(tmp_path) if record["kind"] == "epoch"]
        best = torch.load(tiny.checkpoints(tmp_path) / "best.pt", weights_only=True)["best"]
        assert epochs[-1]["epoch"] == best["epoch"] + 2 < 9


def test_a_diverged_run_names_the_images_of_its_batch(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, "optim.lr=1e30") == 2
    assert "training has diverged at learning rate" in capsys.readouterr().err
    about = json.loads((tmp_path / "runs/tiny/diverged.json").read_text())
    assert about["step"] == 2  # the first step's loss is that of the first weights
    assert len(about["images"]) in (7, 8)
    assert all(isinstance(number, int) for number in about["images"])


def test_force_goes_on_with_other_settings_where_the_state_fits(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, "train.max_steps=6") == 0
    other = ["optim.lr=0.001", "train.label_smoothing=0"]
    assert tiny.do("train", tmp_path, *other) == 2
    assert "train.resume_force=true, which goes on with these" in capsys.readouterr().err
    assert tiny.do("train", tmp_path, *other, "train.resume_force=true") == 0
    assert "going on with another configuration (optim.lr 0.02 -> 0.001" in capsys.readouterr().err
    assert log(tmp_path)[-1]["lr"] < 0.001  # type: ignore[operator]
    assert tiny.do("train", tmp_path, *other, "optim.name=adam", "train.resume_force=true") == 2
    assert "optim.name sgd -> adam" in capsys.readouterr().err


@pytest.mark.parametrize("images", [3, 8])
def test_accumulation_trains_as_the_large_batch_does(birds: Path, tmp_path: Path, images: int) -> None:
    frozen = ["model.freeze_batchnorm=true", "tracking.log_every_steps=1", "train.epochs=1"]
    accumulated = [f"optim.batch_size={images}", "optim.effective_batch_size=8", "run.name=accumulated"]
    assert tiny.do("train", tmp_path, *frozen) == 0
    assert tiny.do("train", tmp_path, *frozen, *accumulated) == 0
    for ours, theirs in zip(log(tmp_path, "accumulated"), log(tmp_path), strict=True):
        name = "loss" if ours["kind"] == "step" else "train_loss"
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


def test_auto_finds_the_batch_that_fits_and_keeps_the_effective_one(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = ["optim.batch_size=auto", "optim.effective_batch_size=8", "train.max_steps=2"]
    assert tiny.do("train", tmp_path, *auto) == 0
    assert "8 images at once, 1 a step: as many as fit" in capsys.readouterr().err
    assert torch.load(tiny.checkpoints(tmp_path) / "last.pt", weights_only=True)["batch_size"] == 8


def test_a_deterministic_run_is_the_same_run_on_the_cpu(trained: Path, tmp_path: Path) -> None:
    try:
        assert tiny.do("train", tmp_path, "train.deterministic=true", "train.max_steps=5") == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert tiny.do("train", tmp_path, "train.max_steps=5", "run.name=usual") == 0
    assert tiny.same_weights(
        tiny.checkpoints(tmp_path) / "last.pt", tiny.checkpoints(tmp_path, "usual") / "last.pt"
    )


def test_evaluation_takes_the_moving_average(everything: Path) -> None:
    assert tiny.do("eval", everything, *EVERYTHING, "eval.split=val", "eval.checkpoint=last") == 0
    numbers = json.loads((everything / "runs/tiny/eval/val/metrics.json").read_text())
    last = next(record for record in reversed(log(everything)) if record["kind"] == "epoch")
    assert numbers["top1"] == pytest.approx(last["val_top1"])
    assert numbers["nll"] == pytest.approx(last["val_loss"], rel=1e-5)


def test_a_schedule_is_drawn_before_anything_is_trained(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = "{name: plateau, epochs: 2}"
    phases = f"optim.phases=[{{name: adam, lr: 1e-3, until: {rule}}}, {{name: sgd, lr: 0.02}}]"
    assert tiny.do("schedule", tmp_path, phases) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["steps"] == 15
    assert Path(answer["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert "sgd, whenever its rule is met" in said.err
    assert tiny.do("schedule", tmp_path, phases, "data.root=nowhere") == 0
    assert "the data are not prepared" in capsys.readouterr().err
    assert not tiny.checkpoints(tmp_path).exists()


def test_lr_find_proposes_a_rate_and_leaves_no_checkpoint(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("lr-find", tmp_path, "lr_find={lowest: 1e-4, highest: 1, steps: 60}") == 0
    answer = json.loads(capsys.readouterr().out)
    assert 1e-4 <= answer["lr"] < 1
    folder = Path(answer["folder"])
    assert {path.name for path in folder.iterdir()} == {"lr_find.csv", "lr_find.png"}
    assert not tiny.checkpoints(tmp_path).exists()


def test_lr_find_learns_as_training_does_and_says_when_no_rate_of_the_range_learns(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first loss is that of the run's first step: the same batch, the same model, frozen alike."""
    more = ["model.freeze_batchnorm=true", "tracking.log_every_steps=1", "train.max_steps=1"]
    assert tiny.do("train", tmp_path, *more) == 0
    assert tiny.do("lr-find", tmp_path, *more, "lr_find={lowest: 1e-9, highest: 1e-8, steps: 10}") == 2
    assert "no learning rate of 1e-09 .. 1e-08 lowers the loss" in capsys.readouterr().err
    first = pd.read_csv(tmp_path / "runs/tiny/lr_find/lr_find.csv")["loss"][0]
    assert first == pytest.approx(log(tmp_path)[0]["loss"], rel=1e-5)
