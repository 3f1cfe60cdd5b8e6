"""Two gloo processes on the CPU, started as a user starts them."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests import tiny


def torchrun(verb: str, tmp: Path, *more: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, "-m", "pipeline", *tiny.command(verb, tmp, *more)[3:]]


def test_two_ranks_evaluate_every_image_once_to_the_same_numbers(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/tiny/eval/test"
    assert tiny.do("eval", tmp_path, "eval.batch_size=4") == 0
    alone = pd.read_csv(folder / "predictions.csv")
    done = tiny.launch(torchrun("eval", tmp_path, "eval.batch_size=4"))
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert done.stdout.count("\n") == 1
    assert (numbers["n"], numbers["test_reads"]) == (18, 2)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "predictions.csv"), alone, rtol=1e-4)


def test_two_ranks_train_as_one_does_to_rounding(birds: Path, tmp_path: Path) -> None:
    # test_resnet has batch norms, whose statistics a rank takes over its own images: freeze them.
    # Accumulation, clipping, thawing (which wraps the model anew) and a switch go across ranks.
    more = ["model.freeze_batchnorm=true", "train.epochs=2", "tracking.log_every_steps=1", "optim.lr=1e-3"]
    more += ["optim.batch_size=4", "optim.effective_batch_size=8", "optim.clip_norm=1", "train.ema_decay=0.9"]
    more += ["optim.frozen_stages=2", "optim.unfreeze_epoch=1", "train.checkpoint_every_steps=3"]
    more += ["optim.phases=[{name: adamw, until: 1}, {name: sgd, carry_momentum: true}]"]
    done = tiny.launch(torchrun("train", tmp_path, *more, "run.name=two"))
    assert done.returncode == 0, done.stderr
    assert tiny.do("train", tmp_path, *more, "run.name=one") == 0
    two, one = (tiny.records(tmp_path / "runs" / name / "log.jsonl") for name in ("two", "one"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for ours, theirs in zip(two, one, strict=True):
        for name in {"loss", "train_loss", "val_loss", "grad_norm", "lr"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4 if name == "grad_norm" else 1e-5), name


def test_an_error_on_all_ranks_ends_the_job_with_its_sentence(birds: Path, tmp_path: Path) -> None:
    done = tiny.launch(torchrun("train", tmp_path, "data.root=nowhere"))
    assert done.returncode != 0
    assert "missing; run `make data`" in done.stderr
