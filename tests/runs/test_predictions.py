"""Stored predictions that are damaged are refused in one sentence wherever they are read."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from pipeline.cli import main
from pipeline.common.errors import DataError
from pipeline.data import sample_table
from pipeline.evaluation import results
from pipeline.runs.directory import RunDirectory
from pipeline.runs.predictions import StoredPredictions
from tests.helpers import tiny

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs that were evaluated: runs/tiny and runs/other."""
    tmp = tmp_path_factory.mktemp("evaluated")
    for name in ("tiny", "other"):
        shutil.copytree(trained / "runs/tiny", tmp / "runs" / name)
        assert tiny.do("eval", tmp, f"run.name={name}", "report.write=false") == 0
    return tmp


@pytest.fixture
def runs(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of them, to damage."""
    shutil.copytree(evaluated / "runs", tmp_path / "runs")
    return tmp_path


def in_predictions(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "predictions.csv"
        change(pd.read_csv(path)).to_csv(path, index=False)

    return damage


def in_outputs(change: Callable[[dict[str, np.ndarray]], None]) -> Damage:
    def damage(folder: Path) -> None:
        with np.load(folder / "outputs.npz") as file:
            arrays = {name: file[name].copy() for name in file}
        change(arrays)
        np.savez(folder / "outputs.npz", **arrays)

    return damage


def cell(column: str, value: object) -> Damage:
    def change(predicted: pd.DataFrame) -> pd.DataFrame:
        predicted[column] = predicted[column].astype(object)
        predicted.loc[3, column] = value
        return predicted

    return in_predictions(change)


def spoil_logits(arrays: dict[str, np.ndarray]) -> None:
    arrays["logits"][4, 2] = np.nan


def another_class(arrays: dict[str, np.ndarray]) -> None:
    arrays["logits"][0] = np.roll(arrays["logits"][0], 1)


def without_features(arrays: dict[str, np.ndarray]) -> None:
    del arrays["features"]


MISSING = in_predictions(lambda predicted: predicted.drop(index=5))
DOUBLED = in_predictions(lambda predicted: pd.concat([predicted, predicted.iloc[[2]]]))
EVERYWHERE = [
    (MISSING, "(1 in all)"),
    (DOUBLED, "duplicate image ids"),
    (cell("predicted", 77), "unknown class 77 ("),
    (cell("predicted_name", "900.Dodo"), "(900.Dodo) (1 in all) in the columns predicted and predicted_name"),
    (cell("label", -1), "unknown class -1 ("),
    (cell("confidence", "nan"), "confidence is no number in 0..1 for image ids"),
    (cell("probability", 1.5), "probability is no number in 0..1 for image ids"),
    (cell("rank", "first"), "not a readable table"),
    (in_predictions(lambda predicted: predicted.drop(columns="rank")), "the columns ['rank'] are missing"),
    (in_predictions(lambda predicted: predicted.head(0)), "the table has no image"),
    (lambda folder: (folder / "predictions.csv").unlink(), "predictions.csv: missing; run `eval`"),
    (lambda folder: (folder / "metrics.json").unlink(), "metrics.json: missing; run `eval`"),
    (
        lambda folder: (folder / "metrics.json").write_text("[]"),
        "metrics.json: damaged (Input should be an object); run `eval`",
    ),
]
OF_THE_MODEL = [
    (in_outputs(spoil_logits), "outputs are not finite for image ids"),
    (in_outputs(another_class), "says another class than predictions.csv"),
    (in_outputs(lambda arrays: arrays.update(id=arrays["id"] + 1)), "are missing in"),
    (in_outputs(lambda arrays: arrays.update(id=arrays["id"] * 0)), "duplicate image ids"),
    (in_outputs(lambda arrays: arrays.update(logits=arrays["logits"][:, 1:])), "holds logits [18, 5]"),
    (in_outputs(without_features), "without one of"),
    (lambda folder: (folder / "outputs.npz").write_bytes(b"no archive"), "outputs.npz: damaged"),
    (lambda folder: (folder / "outputs.npz").unlink(), "outputs.npz: missing; run `eval`"),
    (lambda folder: (folder / "metrics.json").write_text("{"), "metrics.json: damaged (Invalid JSON"),
]


def one_sentence(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(("damage", "sentence"), EVERYWHERE)
def test_compare_refuses(
    runs: Path, capsys: pytest.CaptureFixture[str], damage: Damage, sentence: str
) -> None:
    damage(runs / "runs/other/eval/test")
    code = main.run(["compare", str(runs / "runs/tiny"), str(runs / "runs/other")])
    said = one_sentence(code, capsys)
    assert sentence in said
    assert str(runs / "runs/other/eval/test") in said


@pytest.mark.parametrize(("damage", "sentence"), [*EVERYWHERE, *OF_THE_MODEL])
def test_report_refuses(
    runs: Path, capsys: pytest.CaptureFixture[str], damage: Damage, sentence: str
) -> None:
    damage(runs / "runs/tiny/eval/test")
    said = one_sentence(tiny.do("report", runs), capsys)
    assert sentence in said
    assert str(runs / "runs/tiny/eval/test") in said


def samples_of_tiny() -> pd.DataFrame:
    return sample_table.read(tiny.samples_file())


def training_rows(samples: pd.DataFrame) -> np.ndarray:
    return np.flatnonzero(samples["split"] == "train")


def test_metrics_refuse_a_foreign_image_and_another_label(runs: Path) -> None:
    folder, samples = RunDirectory(runs / "runs/tiny").evaluation("test"), samples_of_tiny()
    first = samples["id"] == samples.loc[samples["split"] == "test", "id"].iloc[0]
    moved = samples.copy()
    moved.loc[first, ["label", "class_name"]] = (
        samples.loc[samples["label"] == 5, ["label", "class_name"]].iloc[0].tolist()
    )
    with pytest.raises(DataError, match=r"other labels than in the data for image ids"):
        results.compute_metrics(folder, moved, training_rows(moved))
    without = samples[~first].reset_index(drop=True)
    with pytest.raises(DataError, match=r"are not in the split"):
        results.compute_metrics(folder, without, training_rows(without))


def test_metrics_follow_from_the_stored_files_alone(runs: Path) -> None:
    folder, samples = RunDirectory(runs / "runs/tiny").evaluation("test"), samples_of_tiny()
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    del before[folder.environment_file.name]  # of the evaluation itself: no product of what it stored
    folder.environment_file.unlink()
    stored = {"predictions.csv", "outputs.npz", "validation.npz", "metrics.json"}
    assert stored < before.keys()
    for name in before.keys() - stored:
        (folder.path / name).unlink()
    metrics, _ = results.compute_metrics(folder, samples, training_rows(samples))
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    assert metrics == json.loads(before["metrics.json"])


def test_training_images_are_counted_among_the_rows_that_the_run_learned_from(runs: Path) -> None:
    folder, samples = RunDirectory(runs / "runs/tiny").evaluation("test"), samples_of_tiny()
    labels, train = samples["label"].to_numpy(), training_rows(samples)
    learned = np.concatenate([train[labels[train] == label][:images] for label, images in COUNTS.items()])
    metrics, tables = results.compute_metrics(folder, samples, learned)
    assert tables["per_class"]["train_images"].tolist() == [*COUNTS.values()]
    expected = spearmanr([*COUNTS.values()], tables["per_class"]["accuracy"]).statistic
    assert metrics["train_images_rho"] == pytest.approx(expected)


COUNTS = {0: 1, 1: 5, 2: 2, 3: 6, 4: 3, 5: 4}  # label -> training images


def test_predictions_are_written_and_read_back(runs: Path, tmp_path: Path) -> None:
    samples = samples_of_tiny()
    stored = StoredPredictions.read(RunDirectory(runs / "runs/tiny").evaluation("test"), samples)
    folder = RunDirectory(tmp_path / "again").evaluation("test")
    stored.write(folder)
    again = StoredPredictions.read(folder, samples)
    pd.testing.assert_frame_equal(again.table, stored.table)
    assert np.array_equal(again.logits, stored.logits)
    assert np.array_equal(again.features, stored.features)
    assert stored.validation is not None
    assert again.validation is not None
    assert all(map(np.array_equal, again.validation, stored.validation))
    replace(stored, validation=None).write(folder)
    assert StoredPredictions.read(folder, samples).validation is None
