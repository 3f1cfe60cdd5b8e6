"""`train.refit=RUN`: the recipe learns from train and validation, for as many epochs as validation had chosen."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline as plumage
from pipeline.cli import main
from pipeline.common import files
from pipeline.common.errors import ConfigError
from pipeline.config.load import load_config
from pipeline.data import prepare
from pipeline.evaluation.compare import compare_runs
from pipeline.inference.linear_head import DEFAULT_WEIGHT_DECAY, Images, fit_linear_head
from pipeline.runs import checkpoints
from pipeline.runs.directory import RunDirectory
from pipeline.training import refit
from pipeline.training.schedule import StepClock
from tests.helpers import tiny


def of_epoch(trained: Path, root: Path, **best: Any) -> Path:
    """The trained run, copied, with another best epoch: 3 epochs of 5 steps of 36 images."""
    run = root / "runs/tiny"
    shutil.copytree(trained / "runs/tiny", run)
    path = RunDirectory(run).checkpoint("best")
    content = checkpoints.read(path)
    checkpoints.save(path, content | {"best": content["best"] | best})
    return run


def test_the_best_epoch_is_trained_again_with_the_validation_images(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = of_epoch(trained, tmp_path, epoch=2, step=10, top1=0.5)
    assert main.run(["train", f"train.refit={run}"]) == 0
    said = capsys.readouterr()
    done = json.loads(said.out)
    made = RunDirectory(run.with_name("tiny-refit"))
    # 42 images are 6 steps an epoch: 2 epochs are 12 steps, of a schedule over 3 epochs
    assert (done["run"], done["step"], done["best_epoch"], done["chosen_by"]) == (
        str(made.path),
        12,
        2,
        "last epoch",
    )
    assert "42 images to train on, 0 to validate" in said.err
    before, config = load_config(run / "config.yaml"), load_config(made.config_file)
    assert (config.train.epochs, config.train.max_steps, config.train.refit) == (3, 12, run)
    assert config.seed == before.seed
    assert made.read_environment()["refit"] == {
        "run": str(run),
        "checkpoint_sha256": files.digest_of_file(run / "checkpoints/best.pt"),
        "best_epoch": 2,
        "best_step": 10,
        "val_top1": 0.5,
    }
    lrs = {
        each: [line["lr"] for line in tiny.records(folder / "log.jsonl") if line["kind"] == "epoch"]
        for each, folder in (("run", run), ("refit", made.path))
    }
    assert lrs["refit"] == pytest.approx(lrs["run"][:2], rel=0.1)  # the schedule is not squeezed
    shutil.rmtree(run)  # the refit needs it no more
    assert main.run(["train", "--config", str(made.config_file)]) == 0
    assert made.read_environment()["refit"]["best_step"] == 10
    capsys.readouterr()
    assert main.run(["eval", "--config", str(made.config_file)]) == 0
    said = capsys.readouterr()
    metrics = json.loads(said.out)
    assert (metrics["refit"], metrics["n"], metrics["test_reads"]) == (str(run), 18, 1)
    assert metrics["temperature"] is None
    assert "prediction_sets" not in metrics
    assert f"learned from train and validation, as a refit of {run}" in said.err
    assert main.run(["eval", "--config", str(made.config_file), "eval.split=val"]) == 2
    assert "eval.split: val has no image" in capsys.readouterr().err


def test_another_recipe_is_no_refit(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration of one's own with the key would be trained without a word as something else."""
    run = of_epoch(trained, tmp_path, epoch=2, step=10, top1=0.5)
    other = tiny.config(tmp_path, "optim.lr=0.5", f"train.refit={run}", "run.name=other")
    with pytest.raises(ConfigError, match=r"another recipe than that of .*tiny \(optim\.lr 0\.02 -> 0\.5\)"):
        plumage.train(other)
    assert not (tmp_path / "runs/other/checkpoints").exists()
    made = plumage.refit(run, {"run.name": "final"})
    assert (made.run, made.step, made.chosen_by) == (tmp_path / "runs/final", 12, "last epoch")
    with pytest.raises(ConfigError, match=r"optim\.lr 0\.02 -> 0\.5 would be another recipe"):
        plumage.refit(run, {"optim.lr": 0.5})


def test_train_and_validation_together_are_the_training_images(birds: Path, tmp_path: Path) -> None:
    plain, both = (prepare.load(tiny.config(tmp_path, *more)) for more in ([], ["train.refit=run"]))
    assert sorted([*plain.rows("train"), *plain.rows("val")]) == both.rows("train")
    assert (both.rows("val"), both.rows("test")) == ([], plain.rows("test"))
    assert plain.rows("val")


@pytest.mark.parametrize(("step", "expected"), [(5, 8), (10, 16), (15, 24), (7, 11), (1, 2), (99, 24)])
def test_as_many_epochs_are_over_as_at_the_best_step(step: int, expected: int) -> None:
    """Private: the rule by hand; 5 steps an epoch become 8."""
    assert refit._same_moment(step, StepClock((5, 5, 5)), StepClock((8, 8, 8))) == expected


def test_refits_of_several_seeds_are_one_recipe_and_not_that_of_the_first_runs(
    trained: Path, tmp_path: Path
) -> None:
    """The best epoch, and so the number of steps, is each seed's own."""
    evaluated = of_epoch(trained, tmp_path)
    assert (
        main.run(["eval", "--config", str(evaluated / "config.yaml"), f"run.root={tmp_path / 'runs'}"]) == 0
    )
    runs = [evaluated]
    for seed, steps in ((0, 12), (1, 18)):
        copy = tmp_path / f"runs/refit{seed}"
        shutil.copytree(evaluated, copy)
        config = load_config(
            copy / "config.yaml",
            [f"seed={seed}", f"train.refit={tmp_path}/{seed}", f"train.max_steps={steps}"],
        )
        files.write_json(copy / "config.yaml", config.model_dump(mode="json"))
        runs.append(copy)
    groups = compare_runs(runs, "test", None)["groups"]
    assert [group["runs"] for group in groups] == [["tiny"], ["refit0", "refit1"]]


@pytest.mark.parametrize(
    ("best", "more", "message"),
    [
        ({"top1": None}, [], "had no validation, and has learned from all images already"),
        ({"step": 0}, [], "was best before its first step"),
        ({}, ["optim.lr=3"], "optim.lr 0.02 -> 3.0 would be another recipe"),
        ({}, ["--config", "{run}/config.yaml"], "takes the configuration of {run}; drop --config"),
        ({}, ["train.refit={run}/nowhere"], "nowhere is no run directory"),
    ],
)
def test_what_cannot_be_refitted_is_one_sentence(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    best: dict[str, Any],
    more: list[str],
    message: str,
) -> None:
    run = of_epoch(trained, tmp_path, **best)
    assert main.run(["train", f"train.refit={run}", *(word.format(run=run) for word in more)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message.format(run=run) in error
    assert not run.with_name("tiny-refit").exists()


def test_the_head_that_a_run_began_with_keeps_the_weight_decay_that_validation_chose(
    trained: Path, tmp_path: Path
) -> None:
    run = of_epoch(trained, tmp_path)
    assert refit.head_weight_decay(run) is None
    path = RunDirectory(run).checkpoint("best")
    content = checkpoints.read(path)
    head = {"source": "probe", "weight_decay": 0.03, "val_top1": 0.5, "val_loss": 1.0}
    checkpoints.save(path, content | {"weights": content["weights"] | {"head": head}})
    chosen = refit.head_weight_decay(run)
    assert chosen == 0.03
    images = Images(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]))
    none = Images(images.features[:0], images.labels[:0])
    assert [fit_linear_head(images, none, 2).setting, fit_linear_head(images, none, 2, chosen).setting] == [
        DEFAULT_WEIGHT_DECAY,
        0.03,
    ]


@pytest.mark.parametrize("key", ["schedule={name: plateau}", "train.early_stop_epochs=2"])
def test_what_watches_validation_is_refused_in_a_refit(key: str) -> None:
    with pytest.raises(ConfigError, match="needs validation, and train.refit learns from its images"):
        load_config(None, ["train.refit=runs/x", key])
