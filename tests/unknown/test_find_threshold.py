import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.answering import unknown_scores
from pipeline.cli.main import run
from pipeline.cli.verbs import unknown as unknown_verb
from pipeline.common.errors import DataError
from pipeline.unknown import find_threshold
from tests.helpers import own_pictures, tiny


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of five classes with twenty validation images, in runs/own, and folders of pictures."""
    tmp = tmp_path_factory.mktemp("unknown")
    birds = own_pictures.class_folders(tmp / "birds", ["a", "b", "c", "d", "e"], count=30)
    more = ("data.val_fraction=0.2", "train.epochs=1")
    for verb in ("data", "train", "eval"):
        assert own_pictures.do(verb, tmp, "folder", birds, *more) == 0
    return tmp


def copy(job: Path, tmp: Path) -> Path:
    """A copy of the run that a test may write to."""
    folder = tmp / "runs/own"
    shutil.copytree(job / "runs/own", folder)
    return folder


def found(folder: Path, *more: str | Path) -> dict[str, Any]:
    """Run the verb; the content of unknown.json."""
    assert run(["unknown", str(folder), *map(str, more)]) == 0
    content: dict[str, Any] = json.loads((folder / "unknown/unknown.json").read_text())
    return content


def test_the_names_of_the_option_are_those_of_the_scores() -> None:
    assert unknown_verb.SCORES == unknown_scores.NAMES


def test_it_says_what_each_score_promises_and_what_test_kept(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(job, tmp_path)
    content = found(folder)
    said = capsys.readouterr()
    assert json.loads(said.out) == content
    assert "promise to keep" in said.err
    assert content["classes"] == 5
    assert [row["name"] for row in content["scores"]] == list(unknown_scores.NAMES)
    chosen = next(row for row in content["scores"] if row["name"] == content["score"])
    assert chosen["threshold"] == content["threshold"]
    n = content["images"]["val"]
    assert content["kept"]["value"] == pytest.approx(n / (n + 1))
    assert content["images"]["test"] == len(pd.read_csv(folder / "eval/test/predictions.csv"))
    assert all(0 <= row["test_kept"]["value"] <= 1 for row in content["scores"])
    assert all("unknown" not in row for row in content["scores"])


def test_test_images_choose_nothing_and_are_not_read_again(job: Path, tmp_path: Path) -> None:
    folder = copy(job, tmp_path)
    with_test = found(folder)
    assert len((folder / "test_reads.jsonl").read_text().splitlines()) == 1
    shutil.rmtree(folder / "eval/test")
    without = found(folder)
    assert "test" not in without["images"]
    for one, other in zip(with_test["scores"], without["scores"], strict=True):
        assert one.pop("test_kept")
        assert one == other


def test_pictures_of_unknown_classes_are_measured_and_choose_nothing(job: Path, tmp_path: Path) -> None:
    folder = copy(job, tmp_path)
    before = found(folder)
    for name in ("x", "y"):
        own_pictures.class_folders(tmp_path / "other", [name], count=4)
    after = found(folder, tmp_path / "other")
    assert after["images"]["unknown"] == 8
    assert after["threshold"] == before["threshold"]
    for row in after["scores"]:
        assert set(row["unknown"]) == {"auroc", "fpr95", "refused"}
        assert all(0 <= row["unknown"][name]["value"] <= 1 for name in row["unknown"])


@pytest.mark.parametrize("score", unknown_scores.NAMES)
def test_predict_refuses_the_share_that_was_measured(job: Path, tmp_path: Path, score: str) -> None:
    folder = copy(job, tmp_path)
    pictures = own_pictures.class_folders(tmp_path / "other", list("wxyz"), count=5)
    rows = found(folder, pictures, "--score", score, "--keep", "0.7")["scores"]
    answers = tmp_path / "answers.csv"
    assert run(["predict", str(folder), str(pictures), "--csv", str(answers)]) == 0
    refused = pd.read_csv(answers)["none_of_these"].mean()
    (row,) = [row for row in rows if row["name"] == score]
    assert refused == pytest.approx(row["unknown"]["refused"]["value"])


def test_a_picture_that_cannot_be_read_is_named_and_the_rest_is_measured(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(job, tmp_path)
    other = own_pictures.class_folders(tmp_path / "other", ["x"], count=3)
    (other / "x/broken.png").write_bytes(b"no picture")
    assert run(["unknown", str(folder), str(other)]) == 2
    assert "broken.png" in capsys.readouterr().err.splitlines()[-1]
    assert json.loads((folder / "unknown/unknown.json").read_text())["images"]["unknown"] == 3


def test_the_score_and_the_share_are_as_asked_for(job: Path, tmp_path: Path) -> None:
    folder = copy(job, tmp_path)
    content = found(folder, "--score", "msp", "--keep", "0.8")
    assert content["score"] == "msp"
    n = content["images"]["val"]
    assert content["kept"]["value"] == pytest.approx((n + 1 - int((n + 1) * 0.2 + 1e-9)) / (n + 1))
    threshold = find_threshold.UnknownThreshold.read(folder / "unknown/threshold.npz")
    assert (threshold.score.name, threshold.lowest) == ("msp", content["threshold"])


def test_too_few_validation_images_are_one_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    assert run(["unknown", str(tmp_path / "runs/tiny"), f"data.root={tiny.data_root()}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unknown: there are 6 validation images")
    assert "data.val_fraction" in line
    assert not (tmp_path / "runs/tiny/unknown").exists()


@pytest.mark.parametrize(
    ("classes", "val", "said"),
    [
        (3, 50, "the data have 3 classes, but a promise needs 4"),
        (10, 18, "there are 18 validation images.*needs 19"),
        (10, 0, "there are 0 validation images"),
    ],
)
def test_what_does_not_suffice_for_a_promise_is_named(classes: int, val: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_threshold.check(np.arange(40) % classes, np.arange(val) % classes, 0.95)


def test_validation_images_of_few_classes_are_refused() -> None:
    with pytest.raises(DataError, match="only 2 of 10 classes have validation images"):
        find_threshold.check(np.arange(40) % 10, np.arange(30) % 2, 0.95)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["unknown", str(tmp_path)]) == 2
    assert f"{tmp_path}: not a run directory" in capsys.readouterr().err
    assert run(["unknown", "eval.tta=flip"]) == 2
    assert "no run is named" in capsys.readouterr().err
