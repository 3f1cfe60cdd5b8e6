"""`plumage soup`: the mean of seeds' weights becomes a run if validation says so, and else nothing is made."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import main
from pipeline.common import files
from pipeline.runs import checkpoints
from pipeline.runs.directory import RunDirectory
from pipeline.training import weight_soup
from tests.helpers.soup_runs import write_run


def soup(*arguments: object) -> int:
    return main.run(["soup", *map(str, arguments), "train.device=cpu"])


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answered: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answered


def test_a_mean_that_is_better_on_validation_becomes_a_run_that_eval_and_predict_take(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs lie on opposite sides of the trained weights: their mean is what was trained."""
    runs = [write_run(trained, tmp_path, seed, apart) for seed, apart in ((0, 1.5), (1, -1.5))]
    assert soup(*runs, "run.name=mean") == 0
    result = answer(capsys)
    made = RunDirectory(tmp_path / "mean")
    assert result["soup"] == str(made.path)
    assert result["uniform"]["of"] == [str(run) for run in runs]
    chosen = result[result["chosen"]]
    assert (chosen["val_top1"], -chosen["val_loss"]) > max(
        (run["val_top1"], -run["val_loss"]) for run in result["runs"]
    )
    assert result["mean_val_top1"] == pytest.approx(sum(run["val_top1"] for run in result["runs"]) / 2)
    contents = [checkpoints.read(RunDirectory(run).checkpoint("best")) for run in runs]
    mean = weight_soup.average([content["model"] for content in contents])
    saved = checkpoints.read(made.checkpoint("best"))
    assert saved["model"].keys() == mean.keys()
    for name, tensor in mean.items():
        assert "running_" in name or "tracked" in name or torch.equal(saved["model"][name], tensor), name
    assert any(
        not torch.equal(saved["model"][name], tensor) for name, tensor in mean.items() if "running_" in name
    )
    about = made.read_environment()
    parts = [
        {"run": str(run), "checkpoint_sha256": files.digest_of_file(run / "checkpoints/best.pt")}
        for run in runs
    ]
    assert sorted(about["weights"]["soup"]["of"], key=str) == sorted(parts, key=str)
    assert saved["weights"]["soup"] == about["weights"]["soup"]
    assert made.count_test_readings() == 0
    assert main.run(["eval", "--config", str(made.config_file), "eval.split=val"]) == 0
    measured = answer(capsys)
    assert measured["top1"] == pytest.approx(chosen["val_top1"])
    assert measured["nll"] == pytest.approx(chosen["val_loss"], abs=1e-4)
    assert main.run(["report", "--config", str(made.config_file), "eval.split=val"]) == 0
    assert "mean" in capsys.readouterr().err
    assert soup(*runs, "run.name=mean") == 2
    assert "already exists; give the soup another name" in capsys.readouterr().err


def test_a_soup_of_the_last_checkpoints_takes_no_best_ones(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(trained, tmp_path, seed, apart) for seed, apart in ((0, 1.5), (1, -1.5))]
    last = [RunDirectory(run).checkpoint("last") for run in runs]
    for run, path in zip(runs, last, strict=True):
        content = checkpoints.read(RunDirectory(run).checkpoint("best"))
        content["model"] = {
            name: 2 * tensor if name.endswith("bias") else tensor for name, tensor in content["model"].items()
        }
        checkpoints.save(path, content)
    assert soup(*runs, "run.name=mean", "eval.checkpoint=last") == 0
    made = answer(capsys)
    digests = [run["checkpoint_sha256"] for run in made["runs"]]
    assert digests == [files.digest_of_file(path) for path in last]
    mean = weight_soup.average([checkpoints.read(path)["model"] for path in last])
    saved = checkpoints.read(RunDirectory(tmp_path / "mean").checkpoint("last"))
    assert all(
        torch.equal(saved["model"][name], mean[name]) for name in mean if name.endswith(("weight", "bias"))
    )
    assert main.run(["verify", str(tmp_path / "mean"), "--images", "0", "--steps", "0"]) == 0
    assert "best.pt is the mean of 2 runs, bit for bit" in capsys.readouterr().err
    assert soup(*runs, "run.name=other", f"eval.checkpoint={last[0]}") == 2
    assert "a soup is made of runs' best or last checkpoints" in capsys.readouterr().err


def test_of_each_run_only_the_weights_that_were_validated_are_held(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run has an average (EMA), which was validated: its other weights and its optimizer are not in memory."""
    runs = [write_run(trained, tmp_path, seed, apart) for seed, apart in ((0, 1.5), (1, -1.5))]
    for path in (run / "checkpoints/best.pt" for run in runs):
        content = checkpoints.read(path)
        other = {name: 3 * tensor for name, tensor in content["model"].items()}
        checkpoints.save(path, content | {"model": other, "ema": content["model"]})
    dropped: list[weakref.ref[torch.Tensor]] = []
    read = checkpoints.read

    def watched(path: Path) -> dict[str, Any]:
        assert not any(tensor() is not None for tensor in dropped), "of the run before"
        content = read(path)
        momenta = [entry["momentum_buffer"] for entry in content["optimizer"]["state"].values()]
        assert momenta
        dropped.extend(map(weakref.ref, [*content["model"].values(), *momenta]))
        return content

    monkeypatch.setattr(checkpoints, "read", watched)
    assert soup(*runs, "run.name=mean") == 0
    assert not any(tensor() is not None for tensor in dropped)
    assert "soup" in answer(capsys)
    saved, averages = (
        read(tmp_path / "mean/checkpoints/best.pt"),
        [read(run / "checkpoints/best.pt")["ema"] for run in runs],
    )
    assert (saved["ema"], saved["optimizer"]) == (None, {"state": {}, "param_groups": []})
    mean = weight_soup.average(averages)
    assert all(torch.equal(saved["model"][name], mean[name]) for name in mean if name.endswith("weight"))


def test_runs_that_lie_too_far_apart_leave_nothing_behind(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run is as it was trained, of the others little is left: no mean is better than that one."""
    runs = [write_run(trained, tmp_path, seed, apart) for seed, apart in ((0, 0.0), (1, 4.0), (2, -6.0))]
    before = sorted(tmp_path.rglob("*"))
    assert soup(*runs) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["soup"] is None
    assert result["best_single"] == str(runs[0])
    assert result["greedy"]["of"] == [str(runs[0])]
    assert "nothing is kept: uniform has " in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_of_another_recipe_or_split_are_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_run(trained, tmp_path, 0, 0.0)
    other = write_run(trained, tmp_path, 1, 0.0, "optim.lr=0.5", "train.label_smoothing=0")
    assert soup(one, other) == 2
    error = capsys.readouterr().err
    assert f"{other}: has a different recipe from {one} (optim.lr 0.02 -> 0.5, train.label_smoothing" in error
    third = write_run(trained, tmp_path, 2, 0.0)
    path = RunDirectory(third).checkpoint("best")
    checkpoints.save(path, checkpoints.read(path) | {"samples": "another"})
    assert soup(one, third) == 2
    assert "data.split_seed=0" in capsys.readouterr().err
    status = RunDirectory(third).status_file
    status.write_text(status.read_text().replace('"finished"', '"stopped"'))
    assert soup(one, third) == 2
    assert f"the training of {third} is stopped; let it finish first" in capsys.readouterr().err
    for given in ([one], [one, one]):
        assert soup(*given) == 2
        assert "give two or more different run directories" in capsys.readouterr().err
    fourth = write_run(trained, tmp_path, 3, 0.0)
    assert soup(one, fourth, "optim.lr=7") == 2
    assert "optim.lr 0.02 -> 7.0 belongs to training" in capsys.readouterr().err
