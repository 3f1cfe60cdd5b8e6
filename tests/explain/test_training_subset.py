"""A run that learned from a part of train: what is said of training images holds for that part alone."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.data import prepare
from pipeline.runs.directory import EvaluationDirectory, RunDirectory
from tests.helpers import tiny

SUBSET = ["train.subset=0.3", "train.epochs=1", "report.pairs=30"]
LEARNED = 2  # round(0.3 * 6) images of each class


@pytest.fixture(scope="module")
def evaluation(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationDirectory:
    """The evaluation, with its report, of a run that learned from 12 of 36 training images."""
    tmp = tmp_path_factory.mktemp("subset")
    assert tiny.do("train", tmp, *SUBSET) == 0
    assert tiny.do("eval", tmp, *SUBSET, "report.write=true") == 0
    return RunDirectory(tmp / "runs/tiny").evaluation("test")


def test_the_report_is_written_and_its_neighbours_are_images_that_were_learned(
    evaluation: EvaluationDirectory,
) -> None:
    assert evaluation.report_file.is_file()
    config = tiny.config(Path("unused"), *SUBSET)
    data = prepare.load(config)
    learned = data.samples.iloc[data.training_rows(config)]
    assert len(learned) == tiny.SPECIES * LEARNED
    nearest = pd.read_csv(evaluation.nearest_file)
    assert len(nearest) > 0
    assert set(nearest["train_id"]) <= set(learned["id"])
    names = learned.set_index("id")["class_name"]
    assert nearest["train_class_name"].tolist() == names.loc[nearest["train_id"]].tolist()


def test_training_images_of_a_class_are_those_that_were_learned(evaluation: EvaluationDirectory) -> None:
    per_class = pd.read_csv(evaluation.table("per_class"))
    assert per_class["train_images"].tolist() == [LEARNED] * tiny.SPECIES


def test_an_evaluation_need_not_repeat_the_subset(evaluation: EvaluationDirectory) -> None:
    tmp = evaluation.path.parents[3]
    assert tiny.do("report", tmp, "report.pairs=30") == 0
    per_class = pd.read_csv(evaluation.table("per_class"))
    assert per_class["train_images"].tolist() == [LEARNED] * tiny.SPECIES
