"""Preparing, training and evaluating from a program do what the verbs do; the page's example runs."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest

import pipeline as plumage
from pipeline.common.errors import CheckpointError, ConfigError
from tests.helpers import tiny

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_a_program_trains_and_evaluates_what_the_verbs_do(
    birds: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.config(tmp_path)
    data = plumage.prepare(config)
    assert len(data.samples) == len(data.store) == 60
    training = plumage.train(config)
    assert tiny.same_weights(training.checkpoint, tiny.checkpoints(trained) / "best.pt")
    assert training.run == tmp_path / "runs/tiny" and training.chosen_by == "validation"
    assert (training.step, training.best_step) == (15, 5 * training.best_epoch)
    evaluation = plumage.evaluate(training.run, "val", {"eval.batch_size": 4})
    assert evaluation.metrics["n"] == 6 and evaluation.top1 == training.best_val_top1
    assert evaluation.folder == training.run / "eval/val"
    names = evaluation.per_class()["class_name"].tolist()
    assert tuple(names) == plumage.load(training.run, device="cpu").classes
    predictions = evaluation.predictions()
    assert (predictions["label"] == predictions["predicted"]).mean() == evaluation.top1
    assert not (training.run / "test_reads.jsonl").exists()
    assert capsys.readouterr().out == ""


def test_evaluating_writes_the_report_and_counts_the_reading_of_test(trained: Path, tmp_path: Path) -> None:
    plumage.train(tiny.config(tmp_path), {"train.epochs": 1})
    evaluation = plumage.evaluate(
        tmp_path / "runs/tiny", overrides={"report.write": True, "report.pairs": 1, "report.explained": 1}
    )
    assert (evaluation.folder / "report.html").is_file()
    assert evaluation.metrics["test_reads"] == 1
    pd.testing.assert_series_equal(
        evaluation.predictions()["id"], pd.read_csv(evaluation.folder / "predictions.csv")["id"]
    )


def test_errors_are_raised_and_end_nothing(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(plumage.UserError, match=r"optim\.lr"):
        plumage.train({"optim.lr": -1})
    with pytest.raises(plumage.UserError, match="not a run directory"):
        plumage.evaluate(tmp_path)
    config = tiny.config(tmp_path)
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/config.yaml").write_text("model: {name: test_resnet}\n")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        plumage.evaluate(tmp_path / "runs/tiny", overrides={"data": config.data.model_dump(mode="json")})
    of_torchrun = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"plumage\.train: this process is one of 2 ranks"):
        plumage.train(config)


def test_the_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(PAGE), "exec"), {"__name__": "notebook"})
    said = capsys.readouterr().out
    assert said.startswith("runs/notebook ") and "images[1] " in said and "(2, 512)" in said
    assert (tmp_path / "runs/notebook/eval/test/metrics.json").is_file()


def test_importing_the_package_loads_nothing_and_every_public_name_is_there() -> None:
    code = (
        "import sys, pipeline\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy and set(pipeline.__all__) <= set(dir(pipeline)), heavy\n"
        "try: pipeline.laod\n"
        "except AttributeError as error: print(error)\n"
    )
    done = tiny.launch([sys.executable, "-c", code])
    assert (done.stdout, done.stderr) == ("module 'pipeline' has no attribute 'laod'\n", "")
    assert all(getattr(plumage, name).__name__ == name for name in plumage.__all__)
