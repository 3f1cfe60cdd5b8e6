"""A second score from the same predictions, by the labels of a file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.data import prepare
from pipeline.evaluation import label_sets
from tests.helpers import tiny

#  id: official, predicted
IMAGES = {11: (0, 0), 12: (0, 1), 13: (1, 1), 14: (1, 0), 15: (2, 2)}
PREDICTED = pd.DataFrame(
    {
        "id": list(IMAGES),
        "label": [label for label, _ in IMAGES.values()],
        "predicted": [guess for _, guess in IMAGES.values()],
    }
)
# 12 is a 1 after all, and 14 is nothing that counts
CLEANED = pd.DataFrame({"id": [12, 14], "label": [1, label_sets.LEFT_OUT]})


def test_score_by_other_labels_and_its_difference_to_the_official_one_of_the_same_images() -> None:
    numbers = label_sets.summary(PREDICTED, CLEANED)
    assert (numbers["relabelled"], numbers["left_out"], numbers["n"]) == (1, 1, 4)
    assert numbers["top1"] == 1
    assert numbers["difference"] == 0.25  # officially 3 of these 4 are right
    assert numbers["difference_low"] >= 0
    assert numbers["top1_low"] == pytest.approx(0.510, abs=1e-3)  # Wilson's of 4 of 4: 1 / (1 + 1.96**2 / 4)


def test_class_without_an_image_left_is_not_in_the_mean_over_classes() -> None:
    without_2 = pd.DataFrame({"id": [15], "label": [label_sets.LEFT_OUT]})
    assert label_sets.summary(PREDICTED, without_2)["per_class_mean"] == 0.5
    assert label_sets.summary(PREDICTED, CLEANED)["per_class_mean"] == 1


def metrics(folder: Path) -> Any:
    return json.loads((folder / "runs/tiny/eval/test/metrics.json").read_text())


def test_file_of_decisions_gives_a_second_score_that_report_keeps(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    assert tiny.do("eval", tmp_path) == 0
    official = metrics(tmp_path)
    assert "label_sets" not in official
    table = pd.read_csv(tmp_path / "runs/tiny/eval/test/predictions.csv")
    wrong = table[table["label"] != table["predicted"]]
    right = table[table["label"] == table["predicted"]]
    assert len(wrong) and len(right)
    decisions = tmp_path / "cleaned.csv"
    rows = [(wrong["id"].iloc[0], wrong["predicted_name"].iloc[0]), (right["id"].iloc[0], "drop")]
    pd.DataFrame(rows, columns=["id", "label"]).to_csv(decisions, index=False)
    key = f"eval.labels=[{decisions}]"
    assert tiny.do("eval", tmp_path, key) == 0
    scored = metrics(tmp_path)
    by = scored["label_sets"]["cleaned"]
    assert scored["top1"] == official["top1"]
    assert by["n"] == official["n"] - 1
    assert by["top1"] * by["n"] == pytest.approx(official["top1"] * official["n"] + 1 - 1)
    assert tiny.do("report", tmp_path) == 0
    assert metrics(tmp_path)["label_sets"] == scored["label_sets"]
    assert "By the labels of <b>cleaned</b>" in (tmp_path / "runs/tiny/eval/test/report.html").read_text()


def test_file_that_does_not_fit_is_refused_before_the_test_split_is_read(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    decisions = tmp_path / "cleaned.csv"
    decisions.write_text("id,label\n1,dodo\n")
    assert tiny.do("eval", tmp_path, f"eval.labels=[{decisions}]") == 2
    assert "no such class" in capsys.readouterr().err
    assert not (tmp_path / "runs/tiny/test_reads.jsonl").exists()
    twice = f"eval.labels=[{decisions}, {tmp_path / 'other' / 'cleaned.csv'}]"
    assert tiny.do("eval", tmp_path, twice) == 2
    assert "more than one file is called cleaned" in capsys.readouterr().err


def test_file_that_leaves_no_image_is_refused_before_the_test_split_is_read(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    samples = prepare.load(tiny.config(tmp_path)).samples
    decisions = tmp_path / "nothing.csv"
    ids = samples.loc[samples["split"] == "test", "id"]
    pd.DataFrame({"id": ids, "label": "drop"}).to_csv(decisions, index=False)
    key = f"eval.labels=[{decisions}]"
    assert tiny.do("eval", tmp_path, key) == 2
    assert f"error: {decisions}: leaves no image of test to score; keep some, or" in capsys.readouterr().err
    assert not (tmp_path / "runs/tiny/test_reads.jsonl").exists()
    assert not (tmp_path / "runs/tiny/eval/test/metrics.json").exists()
    assert tiny.do("eval", tmp_path, key, "eval.split=val") == 0
    pd.DataFrame({"id": ids.iloc[1:], "label": "drop"}).to_csv(decisions, index=False)
    assert tiny.do("eval", tmp_path, key) == 0
    assert metrics(tmp_path)["label_sets"]["nothing"]["n"] == 1
