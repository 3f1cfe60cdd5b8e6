"""The rule of prediction sets that an evaluation left: whose it is, and how `predict` writes its sets."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.answering.run_set_rule import of_run
from pipeline.cli import main
from pipeline.common.errors import DataError
from pipeline.evaluation.set_rule import SetRule
from pipeline.runs.directory import RunDirectory
from tests.helpers import own_pictures, tiny

RULE = {"method": "lac", "coverage": 0.9, "n": 99, "threshold": 0.999}


def put(run: RunDirectory, split: str = "test", **changed: Any) -> None:
    """A metrics.json of checkpoint "a", with what is changed of it."""
    path = run.evaluation(split).metrics_file
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {"checkpoint_sha256": "a", "tta": "none", "prediction_sets": {"lac": {**RULE, "covered": 0.91}}}
    path.write_text(json.dumps(origin | changed))


def test_the_rule_is_of_the_same_checkpoint_and_the_same_crops(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert of_run(run, "a", "none") is None
    put(run)
    assert of_run(run, "a", "none") == SetRule("lac", 0.9, 99, 0.999)
    assert of_run(run, "b", "none") is None
    assert of_run(run, "a", "flip") is None
    put(run, "train", checkpoint_sha256="b")
    assert of_run(run, "b", "none") == SetRule("lac", 0.9, 99, 0.999)


def test_too_few_validation_images_and_none_make_no_rule(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    put(run, prediction_sets={"lac": RULE | {"threshold": None}})
    assert of_run(run, "a", "none") is None
    put(run, prediction_sets={})
    assert of_run(run, "a", "none") is None


def test_a_damaged_rule_is_one_sentence(tmp_path: Path) -> None:
    put(RunDirectory(tmp_path), prediction_sets={"lac": RULE | {"threshold": "high"}})
    with pytest.raises(DataError, match=r"metrics.json.*run `eval` for this split again"):
        of_run(RunDirectory(tmp_path), "a", "none")


def test_files_of_answers_hold_the_sets(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    assert tiny.do("eval", tmp_path) == 0
    metrics = RunDirectory(tmp_path / "runs/tiny").evaluation("test").metrics_file
    content = json.loads(metrics.read_text())
    content["prediction_sets"]["lac"] = RULE  # 6 validation images are too few for one
    metrics.write_text(json.dumps(content))
    folder = own_pictures.class_folders(tmp_path / "mine", ["a", "b"], count=1)
    words = ["predict", str(tmp_path / "runs/tiny"), str(folder)]
    capsys.readouterr()
    assert main.run([*words, "--csv", str(tmp_path / "a.csv")]) == 0
    assert main.run([*words, "--parquet", str(tmp_path / "a.parquet")]) == 0
    assert "; sets for 90%" in capsys.readouterr().err
    cells = [json.loads(cell) for cell in pd.read_csv(tmp_path / "a.csv")["prediction_set"]]
    assert [list(cell) for cell in pd.read_parquet(tmp_path / "a.parquet")["prediction_set"]] == cells
    assert main.run(words) == 0
    answers = json.loads(capsys.readouterr().out)["predictions"]
    assert [answer["prediction_set"] for answer in answers] == cells
    assert [cell[0] for cell in cells] == [answer["classes"][0]["class"] for answer in answers]
    weights = [f"{name},1" for name in classes(tmp_path / "runs/tiny")]
    (tmp_path / "prior.csv").write_text("\n".join(["class,weight", *weights]))
    assert main.run([*words, "--prior", str(tmp_path / "prior.csv")]) == 0
    assert "prediction_set" not in json.loads(capsys.readouterr().out)["predictions"][0]


def classes(run: Path) -> list[str]:
    table = pd.read_csv(RunDirectory(run).evaluation("test").table("per_class"), keep_default_na=False)
    return list(table["class_name"])
