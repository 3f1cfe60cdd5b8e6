"""The tables beside a report say what the metrics and the table of classes say."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipeline.explain.explain import Explained
from pipeline.report import paper_tables
from tests.helpers import tiny

METRICS = {
    "n": 652,
    "classes": 4,
    "top1": 0.81288,
    "top1_low": 0.78115,
    "top1_high": 0.84096,
    "top3": 0.95,
    "top5": 1.0,
    "nll": 0.69389,
    "nll_low": 0.62422,
    "nll_high": 0.76702,
    "ece": 0.11832,
    "label_sets": {
        "cub_plus": {
            "n": 638,
            "top1": 0.82132,
            "top1_low": 0.78969,
            "top1_high": 0.84912,
            "difference": 0.00313,
            "difference_low": -0.00157,
            "difference_high": 0.00784,
        }
    },
}
CLASSES = pd.DataFrame(
    {
        "label": [0, 1],
        "class_name": ["001.Black_footed_Albatross", "002.50%_&_more"],
        "n": [30, 0],
        "accuracy": [0.9, float("nan")],
        "accuracy_low": [0.74, 0.0],
        "accuracy_high": [0.97, 1.0],
        "precision": [0.75, float("nan")],
        "f1": [0.818, float("nan")],
        "train_images": [27, 30],
        "taken_for": [1, -1],
    }
)
VIEWS = pd.DataFrame(
    {
        "view": ["whole picture", "box alone"],
        "n": [100, 100],
        "top1": [0.8, 0.75],
        "top1_low": [0.71, 0.66],
        "top1_high": [0.87, 0.82],
        "difference": [0.0, -0.05],
        "difference_low": [0.0, -0.1],
        "difference_high": [0.0, 0.01],
    }
)


def cells(path: Path) -> list[list[str]]:
    """The rows of a LaTeX table, with its head."""
    lines = [line.removesuffix(r" \\") for line in path.read_text().splitlines() if line.endswith(r"\\")]
    return [line.split(" & ") for line in lines]


def test_the_words_by_hand(tmp_path: Path) -> None:
    paper_tables.write(tmp_path, METRICS, CLASSES, Explained(views=VIEWS))
    assert cells(tmp_path / "headline.tex") == [
        ["", "value", r"95 \% interval", "n"],
        [r"top-1 accuracy (\%)", "81.3", "78.1 to 84.1", "652"],
        [r"top-3 accuracy (\%)", "95.0", "--", "652"],
        [r"expected calibration error (\%)", "11.8", "--", "652"],
        ["log loss (nats)", "0.694", "0.624 to 0.767", "652"],
        [r"top-1 accuracy by cub\_plus (\%)", "82.1", "79.0 to 84.9", "638"],
        [r"cub\_plus minus official labels (points)", "+0.3", "-0.2 to +0.8", "638"],
    ]
    assert cells(tmp_path / "per_class.tex")[1:] == [
        ["Black footed Albatross", "30", "90.0", "74.0 to 97.0", "75.0", "81.8", "27"],
        [r"50\% \& more", "0", "--", "--", "--", "--", "30"],
    ]
    assert cells(tmp_path / "views.tex")[1:] == [
        ["whole picture", "80.0", "71.0 to 87.0", "--", "--"],
        ["box alone", "75.0", "66.0 to 82.0", "-5.0", "-10.0 to +1.0"],
    ]
    numbers = pd.read_csv(tmp_path / "headline.csv").set_index("number")
    assert numbers.loc["top-1 accuracy", ["value", "low", "high"]].tolist() == [0.81288, 0.78115, 0.84096]
    assert numbers["kind"].tolist() == [*["share"] * 3, "number", "share", "difference"]


@pytest.mark.parametrize(
    ("classes", "expected"), [(3, []), (4, ["top3"]), (5, ["top3"]), (6, ["top3", "top5"])]
)
def test_an_accuracy_that_cannot_be_below_1_is_left_out(classes: int, expected: list[str]) -> None:
    told = paper_tables.headline({**METRICS, "classes": classes})["number"].tolist()
    assert [key for key in ("top3", "top5") if paper_tables.SHARES[key] in told] == expected


def test_a_report_leaves_them_beside_the_page(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    folder = tmp_path / "runs/tiny/eval/test"
    assert tiny.do("eval", tmp_path, "report.write=true", "report.explained=4") == 0
    names = {path.name for path in (folder / "tables").iterdir()}
    assert names == {"headline.tex", "headline.csv", "per_class.tex", "per_class.csv"}
    numbers = pd.read_csv(folder / "tables/headline.csv").set_index("number")["value"]
    assert numbers["top-1 accuracy"] == pytest.approx(
        json.loads((folder / "metrics.json").read_text())["top1"]
    )
    assert len(cells(folder / "tables/per_class.tex")) == 1 + tiny.SPECIES
    unescaped = re.sub(r"\\[&%$#_{}]|\\text\w+\{\}", "", (folder / "tables/per_class.tex").read_text())
    assert not re.search(r"[_$#^~]", unescaped.split("\\midrule")[1])
