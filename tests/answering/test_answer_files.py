"""Answers in JSON lines, CSV and Parquet."""

import importlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.answering.answer_files import Answer, AnswerFile, Format, Judgement
from pipeline.common.errors import DataError

NAMES = ["NA", "a, b", "007"]
ANSWERS = [
    Answer(
        Path('a "b".jpg'),
        (("a, b", 0.75), ("NA", 0.25)),
        np.array([0.1, 2, -1], np.float32),
        np.array([0.5], np.float32),
    ),
    Answer(Path(os.fsdecode(b"\xff\n.jpg")), error="missing"),
    Answer(Path("c.jpg"), (("007", 1.0),), np.zeros(3, np.float32), np.ones(1, np.float32)),
]


def write(kind: Format, path: Path, numbers: bool = True) -> None:
    with AnswerFile(kind, path).writing(NAMES, 2, numbers, numbers, {}) as put:
        for answer in ANSWERS:
            put(answer)


def test_json_has_a_line_a_picture(tmp_path: Path) -> None:
    write("json", tmp_path / "new" / "a.jsonl")
    first, bad, last = map(json.loads, (tmp_path / "new" / "a.jsonl").read_text().splitlines())
    assert first == {
        "image": 'a "b".jpg',
        "classes": [{"class": "a, b", "probability": 0.75}, {"class": "NA", "probability": 0.25}],
        "logits": [float(np.float32(0.1)), 2, -1],
        "features": [0.5],
    }
    assert bad == {"image": "\\xff\n.jpg", "error": "missing"}
    assert last["classes"] == [{"class": "007", "probability": 1}]


def test_csv_has_a_row_a_picture_with_empty_cells_where_there_is_nothing(tmp_path: Path) -> None:
    write("csv", tmp_path / "a.csv")
    table = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    columns = ["image", "class_1", "probability_1", "class_2", "probability_2", "logits", "features", "error"]
    assert table.columns.tolist() == columns
    assert table.iloc[0].tolist()[:5] == ['a "b".jpg', "a, b", "0.75", "NA", "0.25"]
    assert json.loads(table["logits"][0])[1:] == [2, -1]
    assert table.iloc[1].tolist() == ["\\xff\n.jpg", *[""] * 6, "missing"]
    assert table.iloc[2].tolist()[1:5] == ["007", "1.0", "", ""]
    write("csv", tmp_path / "b.csv", numbers=False)
    assert (
        (tmp_path / "b.csv")
        .read_text()
        .startswith("image,class_1,probability_1,class_2,probability_2,error\n")
    )


def test_parquet_has_a_row_a_picture_and_the_order_of_the_logits(tmp_path: Path) -> None:
    if not importlib.util.find_spec("pyarrow"):
        pytest.skip("pyarrow is an optional extra")
    write("parquet", tmp_path / "a.parquet")
    table = importlib.import_module("pyarrow.parquet").read_table(tmp_path / "a.parquet")
    assert json.loads(table.schema.metadata[b"classes"]) == NAMES
    first, bad, last = table.to_pylist()
    assert (first["class_1"], first["probability_2"], first["logits"][1]) == ("a, b", 0.25, 2)
    assert (bad["class_1"], bad["logits"], bad["error"]) == (None, None, "missing")
    assert (last["class_1"], last["class_2"], last["features"]) == ("007", None, [1])


def test_standard_output_gets_each_row_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with AnswerFile("json", Path("-")).writing(NAMES, 2, False, False, {}) as put:
        put(ANSWERS[1])
        assert json.loads(capsys.readouterr().out)["error"] == "missing"
    with AnswerFile("csv", Path("-")).writing(NAMES, 1, False, False, {}) as put:
        assert capsys.readouterr().out == "image,class_1,probability_1,error\n"
        put(ANSWERS[2])
        assert capsys.readouterr().out == "c.jpg,007,1.0,\n"


def test_an_error_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("before")
    with pytest.raises(RuntimeError), AnswerFile("csv", path).writing(NAMES, 1, False, False, {}) as put:
        put(ANSWERS[0])
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_place_of_the_file_is_refused_before_the_prediction(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match="a.csv: a folder; name a file"):
        AnswerFile("csv", tmp_path / "a.csv").check()


@pytest.mark.parametrize(
    ("kind", "path", "sentence"),
    [
        ("csv", "bird.jpg", "--csv bird.jpg: would be written over; name a file that ends in .csv, or - for"),
        ("json", "a.csv", "name a file that ends in .json or .jsonl or .ndjson"),
        ("parquet", "-", "--parquet -: Parquet is written to a file"),
    ],
)
def test_a_file_that_would_be_lost_is_refused(kind: Format, path: str, sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        AnswerFile(kind, Path(path)).check()


def test_parquet_without_pyarrow_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        DataError, match=r"--parquet a.parquet: writing Parquet needs the package pyarrow; install it"
    ):
        AnswerFile("parquet", Path("a.parquet")).check()


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_file_of_something_else_is_not_written_over(kind: Format, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    AnswerFile(kind, path).check()  # none there
    path.touch()
    AnswerFile(kind, path).check()
    write(kind, path)
    AnswerFile(kind, path).check()  # the answers of before
    path.write_text("path,label\na.jpg,x\n")
    with pytest.raises(DataError, match="exists, and holds no answers of `predict`; name another file"):
        AnswerFile(kind, path).check()


def test_letters_of_all_languages_stay_letters_in_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with AnswerFile("csv", path).writing(["Grünfink"], 1, False, False, {"prediction_set": list}) as put:
        put(
            Answer(
                Path("a.jpg"), (("Grünfink", 1.0),), judgement=Judgement("", {"prediction_set": ["Grünfink"]})
            )
        )
    assert json.loads(pd.read_csv(path)["prediction_set"][0]) == ["Grünfink"]
    assert path.read_text(encoding="utf-8").count("Grünfink") == 2
