"""`predict` answers "none of these" by the threshold that `unknown` left."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from pipeline.answering.unknown_scores import Score
from pipeline.answering.unknown_threshold import UnknownThreshold
from pipeline.cli.main import run
from pipeline.common import arrays, files
from pipeline.runs.directory import RunDirectory
from tests.helpers import own_pictures, tiny


@pytest.fixture
def own_run(trained: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the tiny run."""
    shutil.copytree(trained / "runs/tiny", tmp_path / "runs/tiny")
    return RunDirectory(tmp_path / "runs/tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return own_pictures.class_folders(tmp_path / "pictures", ["a", "b", "c", "d"], count=2)


def predicted(own_run: RunDirectory, pictures: Path, *more: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines with logits."""
    path = own_run.path / "answers.json"
    assert run(["predict", str(own_run.path), str(pictures), "--logits", "--json", str(path), *more]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


def left(own_run: RunDirectory, pictures: Path, **other: str) -> float:
    """Leave a threshold of the largest logit that refuses half of the pictures; it."""
    largest = [max(row["logits"]) for row in predicted(own_run, pictures)]
    lowest = float(np.sort(largest)[4])
    digest = files.digest_of_file(own_run.checkpoint("best"))
    origin = {"checkpoint_sha256": digest, "tta": "none"} | other
    UnknownThreshold(Score("max_logit", {}), lowest, 0.95, **origin).write(own_run.unknown_threshold_file)
    return lowest


def test_each_picture_below_the_threshold_is_none_of_these(own_run: RunDirectory, pictures: Path) -> None:
    lowest = left(own_run, pictures)
    rows = predicted(own_run, pictures)
    assert [row["none_of_these"] for row in rows] == [max(row["logits"]) < lowest for row in rows]
    assert sum(row["none_of_these"] for row in rows) == 4
    assert all(row["classes"] for row in rows)  # the nearest ones are named all the same


def test_the_tables_have_the_column_and_the_screen_the_words(
    own_run: RunDirectory, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left(own_run, pictures)
    expected = [row["none_of_these"] for row in predicted(own_run, pictures)]
    paths = {name: own_run.path / f"answers.{name}" for name in ("csv", "parquet")}
    for name, path in paths.items():
        assert run(["predict", str(own_run.path), str(pictures), f"--{name}", str(path)]) == 0
    with paths["csv"].open(newline="") as stream:
        assert [row["none_of_these"].lower() == "true" for row in csv.DictReader(stream)] == expected
    assert parquet.read_table(paths["parquet"])["none_of_these"].to_pylist() == expected
    capsys.readouterr()
    assert run(["predict", str(own_run.path), str(pictures)]) == 0
    said = capsys.readouterr()
    assert said.err.count("none of these") == 4 + 1  # four pictures, and the title
    assert [row["none_of_these"] for row in json.loads(said.out)["predictions"]] == expected


@pytest.mark.parametrize("other", [{"checkpoint_sha256": "of another file"}, {"tta": "flip"}])
def test_a_threshold_of_another_checkpoint_or_other_crops_is_not_used(
    own_run: RunDirectory, pictures: Path, other: dict[str, str]
) -> None:
    before = predicted(own_run, pictures)
    left(own_run, pictures, **other)
    assert predicted(own_run, pictures) == before
    assert all("none_of_these" not in row for row in before)


def test_a_threshold_of_flipped_pictures_is_used_with_tta(own_run: RunDirectory, pictures: Path) -> None:
    left(own_run, pictures, tta="flip")
    assert all("none_of_these" in row for row in predicted(own_run, pictures, "--tta"))


def test_no_answer_is_sure_for_a_picture_of_no_class(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    assert tiny.do("eval", tmp_path) == 0
    own_run = RunDirectory(tmp_path / "runs/tiny")
    pictures = own_pictures.class_folders(tmp_path / "pictures", ["a", "b", "c", "d"], count=2)
    if "sure" not in predicted(own_run, pictures)[0]:
        pytest.fail("`eval` has left no thresholds")
    left(own_run, pictures)
    refused = [row for row in predicted(own_run, pictures) if row["none_of_these"]]
    assert len(refused) == 4
    assert not any(row["sure"] for row in refused)


def test_a_damaged_threshold_is_named(
    own_run: RunDirectory, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left(own_run, pictures)
    path = own_run.unknown_threshold_file
    arrays.write_npz(path, {"score": np.array("msp")})
    assert run(["predict", str(own_run.path), str(pictures)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{path}: damaged" in error
    assert "plumage unknown RUN" in error
