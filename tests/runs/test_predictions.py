"""Stored predictions that are damaged are refused in one sentence wherever they are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.cli import main
from pipeline.common.errors import DataError
from pipeline.data import sample_table
from pipeline.evaluation import results
from pipeline.runs import predictions
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
    (DOUBLED, "stand there twice"),
    (cell("predicted", 77), "unknown class 77 ("),
    (cell("predicted_name", "900.Dodo"), "(900.Dodo) (1 in all) in the columns predicted and predicted_name"),
    (cell("label", -1), "unknown class -1 ("),
    (cell("confidence", "nan"), "confidence is no number in 0..1 for image ids"),
    (cell("probability", 1.5), "probability is no number in 0..1 for image ids"),
    (cell("rank", "first"), "not a readable table"),
    (in_predictions(lambda predicted: predicted.drop(columns="rank")), "the columns ['rank'] are missing"),
    (in_predictions(lambda predicted: predicted.head(0)), "no image stands there"),
    (lambda folder: (folder / "predictions.csv").unlink(), "predictions.csv: missing; run `eval`"),
    (lambda folder: (folder / "metrics.json").unlink(), "metrics.json: missing; run `eval`"),
    (lambda folder: (folder / "metrics.json").write_text("[]"), "does not hold the numbers of an evaluation"),
]
OF_THE_MODEL = [
    (in_outputs(spoil_logits), "outputs are not finite for image ids"),
    (in_outputs(another_class), "says another class than predictions.csv"),
    (in_outputs(lambda arrays: arrays.update(id=arrays["id"] + 1)), "are missing in"),
    (in_outputs(lambda arrays: arrays.update(id=arrays["id"] * 0)), "stand there twice"),
    (in_outputs(lambda arrays: arrays.update(logits=arrays["logits"][:, 1:])), "holds logits [18, 5]"),
    (in_outputs(without_features), "without one of"),
    (lambda folder: (folder / "outputs.npz").write_bytes(b"no archive"), "outputs.npz: damaged"),
    (lambda folder: (folder / "outputs.npz").unlink(), "outputs.npz: missing; run `eval`"),
    (lambda folder: (folder / "metrics.json").write_text("{"), "metrics.json: not JSON"),
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


def test_numbers_refuse_a_foreign_image_and_another_label(runs: Path) -> None:
    folder = runs / "runs/tiny/eval/test"
    samples = sample_table.read(next(tiny.data_root().glob("synthetic-6x10-*/samples-val0.1-seed0.csv")))
    own = samples["id"] == samples.loc[samples["split"] == "test", "id"].iloc[0]
    moved = samples.copy()
    moved.loc[own, ["label", "class_name"]] = (
        samples.loc[samples["label"] == 5, ["label", "class_name"]].iloc[0].tolist()
    )
    with pytest.raises(DataError, match=r"other labels than in the data for image ids"):
        results.compute_metrics(folder, moved)
    with pytest.raises(DataError, match=r"are not in the split"):
        results.compute_metrics(folder, samples[~own])


def test_the_numbers_follow_from_the_stored_files_alone(runs: Path) -> None:
    folder = runs / "runs/tiny/eval/test"
    samples = sample_table.read(next(tiny.data_root().glob("synthetic-6x10-*/samples-val0.1-seed0.csv")))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    kept = {"predictions.csv", "outputs.npz", "validation.npz", "metrics.json"}
    assert kept < before.keys()
    for name in before.keys() - kept:
        (folder / name).unlink()
    found, _ = results.compute_metrics(folder, samples)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert found == json.loads(before["metrics.json"])


def test_outputs_are_written_and_read_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    outputs = predictions.Outputs(
        np.array([4, 2, 9]),
        random.normal(size=(3, 2)).astype(np.float32),
        random.normal(size=(3, 5)).astype(np.float32),
    )
    predicted = pd.DataFrame({"id": outputs.id, "predicted": outputs.logits.argmax(axis=1)})
    validation = predictions.Validation(outputs.logits[:2], np.array([0, 1]))
    predictions.write(tmp_path, predicted, outputs, validation)
    back = predictions.read_outputs(tmp_path, predicted, 2)
    assert all(np.array_equal(getattr(back, name), value) for name, value in vars(outputs).items())
    again = predictions.read_validation(tmp_path, 2)
    assert again is not None and np.array_equal(again.logits, validation.logits)
    predictions.write(tmp_path, predicted, outputs)
    assert predictions.read_validation(tmp_path, 2) is None
