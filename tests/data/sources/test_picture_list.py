"""Source `csv`: tables of pictures in four formats, labels that stay text, and each fault as one sentence."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.common.errors import DataError
from pipeline.data import sample_table
from pipeline.data.sample_table import EITHER
from pipeline.data.sources.picture_list import PictureList
from tests.helpers import own_pictures
from tests.helpers.folders import digests
from tests.helpers.own_pictures import class_folders

LABELS = ["007", "1e5", "NA", "nan", "null", "true"]
Rows = list[dict[str, str]]


def rows_of(folder: Path, labels: list[str], count: int = 5) -> Rows:
    """The pictures of class folders that are written, a row each."""
    class_folders(folder / "pics", labels, count)
    return [
        {"path": f"pics/{label}/{number}.png", "label": label} for label in labels for number in range(count)
    ]


def csv(path: Path, rows: Rows) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def json_lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: Rows) -> Path:
    if not importlib.util.find_spec("pyarrow"):
        pytest.skip("pyarrow is an optional extra")
    pd.DataFrame(rows).to_parquet(path)
    return path


FORMATS: dict[str, Callable[[Path, Rows], Path]] = {
    "list.csv": csv,
    "list.tsv": csv,
    "list.jsonl": json_lines,
    "list.parquet": parquet,
}


def read(path: Path, **keys: object) -> pd.DataFrame:
    source = PictureList(own_pictures.config("csv", path, **keys))
    return source.read(source.find_root(path))


def test_a_table_becomes_a_model_that_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    table = csv(mine / "list.csv", [{**row, "note": "x"} for row in rows_of(mine, LABELS)])
    before = digests(mine)
    for verb in ("data", "train", "eval"):
        assert own_pictures.do(verb, tmp_path, "csv", table, "report.write=false") == 0
    said = capsys.readouterr()
    assert f"{table}: columns that are not used: note (1 in all)" in said.err
    assert json.loads(said.out.splitlines()[-1])["n"] == 6
    evaluated = tmp_path / "runs" / "own" / "eval" / "test"
    predictions = pd.read_csv(evaluated / "predictions.csv", dtype=str, keep_default_na=False)
    assert predictions["class_name"].tolist() == LABELS
    per_class = pd.read_csv(evaluated / "per_class.csv", dtype=str, keep_default_na=False)
    assert per_class["class_name"].tolist() == LABELS
    assert own_pictures.do("predict", tmp_path, "csv", table, str(mine / "pics" / "NA" / "0.png")) == 0
    answer = json.loads(capsys.readouterr().out)["predictions"][0]["classes"]
    assert {each["class"] for each in answer} < set(LABELS)
    assert digests(mine) == before


@pytest.mark.parametrize("name", FORMATS)
def test_formats_say_the_same(tmp_path: Path, name: str) -> None:
    rows = rows_of(tmp_path, [*LABELS, "two\nlines"], count=2)
    table = read(FORMATS[name](tmp_path / name, rows))
    assert table[["path", "class_name"]].to_dict("records") == [
        {"path": row["path"], "class_name": row["label"]} for row in rows
    ]
    assert sample_table.class_names(table) == sorted({row["label"] for row in rows})
    assert (table["official"] == EITHER).all()
    assert table["box_x"].isna().all()


def test_numbers_of_json_lines_are_the_text_that_stands_there(tmp_path: Path) -> None:
    class_folders(tmp_path, ["a", "b"], count=3)
    labels = ["1e5", "1.50", "true", "7", '"007"', "NaN"]
    paths = [f"{name}/{number}.png" for name in "ab" for number in range(3)]
    text = "".join(
        f'{{"path": "{path}", "label": {label}}}\n' for path, label in zip(paths, labels, strict=True)
    )
    (tmp_path / "list.jsonl").write_text(text)
    assert read(tmp_path / "list.jsonl", test_fraction=0.0)["class_name"].tolist() == [
        label.strip('"') for label in labels
    ]


def test_parquet_without_pyarrow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "list.parquet").write_text("")
    with pytest.raises(
        DataError, match=r"list.parquet: reading Parquet needs the package pyarrow; install it .*CSV$"
    ):
        read(tmp_path / "list.parquet")


def test_splits_boxes_groups_and_ids_are_taken(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ["crow", "gull"], count=4)
    for number, row in enumerate(rows):
        row |= {"split": ["train", "Train", "valid", "test"][number % 4], "group": f"burst {number}"}
        row |= {"id": str(100 + number), "box_x": "1", "box_y": "2.5", "box_width": "10", "box_height": "4"}
    rows[1] |= dict.fromkeys(["box_x", "box_y", "box_width", "box_height", "group"], "")
    table = read(csv(tmp_path / "list.csv", rows))
    assert table["official"].tolist() == ["train", "train", "val", "test"] * 2
    assert table["id"].tolist() == list(range(100, 108))
    assert table.loc[0, ["box_x", "box_y", "box_w", "box_h"]].tolist() == [1, 2.5, 10, 4]
    assert np.isnan(table.loc[1, "box_x"])
    assert table["group"].tolist()[:2] == ["burst 0", ""]
    for row in rows:
        row["split"] = row["split"].replace("test", "train")
    assert read(csv(tmp_path / "list.csv", rows))["official"].tolist() == [EITHER, EITHER, "val", EITHER] * 2


def test_a_group_lies_in_one_split_of_the_prepared_data(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ["crow", "gull"], count=20)
    for number, row in enumerate(rows):
        row["group"] = f"{row['label']} {number % 20 // 4}" if number % 20 < 16 else ""
    table = csv(tmp_path / "list.csv", rows)
    for keys in (["seed=0"], ["seed=1"], ["data.folds=3", "data.fold=1"]):
        assert own_pictures.do("data", tmp_path, "csv", table, *keys) == 0
    for path in (tmp_path / "data").glob("csv-*/samples-*.csv"):
        samples = sample_table.read(path)
        grouped = samples[samples["group"] != ""]
        assert (grouped.groupby("group")["split"].nunique() == 1).all()
        assert len(grouped["group"].unique()) == 8
        assert set(samples["split"]) == {"train", "val", "test"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_group_is_one_however_it_is_typed(tmp_path: Path, name: str) -> None:
    spellings = ["nest", "nest ", "\tnest", "e\u0301t", "\u00e9t", " ", ""]
    rows = rows_of(tmp_path, ["crow", "gull"], count=7)
    rows = [{**row, "group": spellings[number % 7]} for number, row in enumerate(rows)]
    table = read(FORMATS[name](tmp_path / name, rows))
    assert table["group"].tolist() == ["nest", "nest", "nest", "\u00e9t", "\u00e9t", "", ""] * 2


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_may_be_as_a_spreadsheet_program_saves_it(tmp_path: Path, separator: str) -> None:
    lines = [
        ["path", "label", "note"],
        ["1.png", '"gull, herring"', "a"],
        ["2.png", "crow"],
        [],
        ["3.png", "007", ""],
    ]
    text = "".join(separator.join(line) + "\r\n" for line in lines)
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    table = read(tmp_path / "list.csv", test_fraction=0.0)
    assert table[["path", "class_name"]].to_numpy().tolist() == [
        ["1.png", "gull, herring"],
        ["2.png", "crow"],
        ["3.png", "007"],
    ]


def change(**cells: str) -> Callable[[Rows], Rows]:
    """Other cells in the first row; a column that is new is empty elsewhere."""
    return lambda rows: [{**rows[0], **cells}, *rows[1:]]


def filled(column: str, first: str, others: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{**row, column: others if number else first} for number, row in enumerate(rows)]


FAULTS: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "no label column": (
        lambda rows: [{"path": row["path"], "lable": row["label"]} for row in rows],
        r"no column label among path, lable \(2 in all\); name the columns path .* and label",
    ),
    "no path": (change(path=""), r"rows without a path: row 1 \(1 in all\); give"),
    "outside": (
        change(path="../1.png"),
        r"paths that lead out of the table's folder: \.\./1.png \(1 in all\); put",
    ),
    "absolute": (change(path="/1.png"), r"paths that lead out of the table's folder: /1.png"),
    "backslash": (
        change(path="pics\\1.png"),
        r"where / is expected between folders: pics\\1.png .*; write /",
    ),
    "doubled": (
        change(path="pics/./crow/1.png"),
        r"paths more than once: pics/crow/1.png \(1 in all\); list each",
    ),
    "no label": (change(label=" "), r"without a label: row 1 \(1 in all\); give each picture its class"),
    "case": (change(label="Crow"), r"labels that differ only in case, .*: Crow / crow \(1 in all\); spell"),
    "alone": (change(label="owl"), r"one picture alone of owl \(1 in all\), so none is left to test"),
    "split": (filled("split", "dev", "train"), r"unknown splits: dev \(1 in all\); write train, val or test"),
    "some splits": (
        filled("split", "", "train"),
        r"rows without a split, .*: row 1 \(1 in all\); fill it in",
    ),
    "group": (
        lambda rows: filled("split", "test", "train")(filled("group", "a", "a")(rows)),
        r"groups in more than one split: a \(1 in all\); put all pictures of a group into one",
    ),
    "one group": (
        filled("group", "a", "a"),
        r"one group of pictures alone of crow, gull \(2 in all\)",
    ),
    "a group in more than one split, with a space": (
        lambda rows: [
            {**row, "split": ("train", "test")[number % 2], "group": "nest" + " " * (number % 2)}
            for number, row in enumerate(rows)
        ],
        r"groups in more than one split: nest \(1 in all\); put all pictures of a group into one",
    ),
    "one group, once with a space": (
        lambda rows: [{**row, "group": "a" + " " * (number % 2)} for number, row in enumerate(rows)],
        r"one group of pictures alone of crow, gull \(2 in all\)",
    ),
    "a group that no table can hold": (
        change(group="a\0b"),
        r"groups with a carriage return or a zero byte: 'a.x00b' \(1 in all\); take it out",
    ),
    "a long label": (
        change(label="x" * 5000),
        r"one picture alone of x{300}\.\.\. \(1 in all\)",
    ),
    "a label with spaces around": (
        filled("label", "crow ", "crow"),
        r"labels that differ only in case, accents' coding or spaces: crow / 'crow ' \(1 in all\)",
    ),
    "box": (
        change(box_x="1", box_y="2", box_width="x", box_height="3"),
        r"boxes that are not four numbers .*: row 1",
    ),
    "part of a box": (
        change(box_x="1"),
        r"boxes that are not four numbers .*: row 1 \(1 in all\); give all four",
    ),
    "flat box": (
        change(box_x="1", box_y="2", box_width="0", box_height="3"),
        r"boxes without an area: row 1",
    ),
    "id": (
        filled("id", "a7", "1"),
        r"ids that are no whole numbers: a7 .*number the pictures",
    ),
    "ids": (filled("id", "01", "1"), r"ids more than once: 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_a_fault_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, fault: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, sentence = FAULTS[fault]
    path = FORMATS[name](tmp_path / name, make(rows_of(tmp_path, ["crow", "gull"])))
    with pytest.raises(DataError, match=f"(?s)^{path}: .*{sentence}"):
        read(path)
    assert own_pictures.do("data", tmp_path, "csv", path) == 2
    assert not (tmp_path / "data").exists()
    assert "Traceback" not in capsys.readouterr().err


TEXTS = {
    "list.csv": [
        ("path,label,label\na,b,c\n", r"a column stands there twice among .*; keep one of each"),
        ("path,label\n", "no picture is listed; add a row for each"),
        ("path,label\n,\n", "no picture is listed; add a row for each"),
        ("", "an empty file; save it again as CSV, with the columns path and label"),
        ("path,label\na,b,c,d\n", r"rows with more cells than .* columns: 1 \(1 in all\); quote"),
        ("path,label\n\xff\xfe", "not UTF-8 text; save it as UTF-8"),
    ],
    "list.tsv": [
        (
            "path\tlabel\tlabel\na\tb\tc\n",
            r"columns more than once: label \(1 in all\); keep one of each",
        ),
        ("path\tlabel\na\tb\tc\td\n", r"no readable tsv table \(.*line 2.*\); save it again, in UTF-8"),
        ("path\tlabel\n\xff\xfe", "no readable tsv table .*; save it again, in UTF-8"),
        ("", "no readable tsv table"),
    ],
    "list.jsonl": [
        ('{"path": "a"', "no readable jsonl table .*line 1"),
        ('{"path": "a", "path": "b"}', r"\(line 1: a key stands there twice\)"),
        ('["a"]', "line 1: no object such as"),
        ('{"path": ["a"], "label": "b"}', "line 1: a list where a text or a number is expected"),
        ('{"path": {}, "label": "b"}', "line 1: a row where a text or a number is expected"),
        ("[" * 100_000, "no readable jsonl table"),
        ("\n\n", "no picture is listed; add a row for each"),
    ],
    "list.xlsx": [
        ("x", r"ends in none of .csv, .tsv, .jsonl, .ndjson, .parquet; save the table as one of these")
    ],
}


@pytest.mark.parametrize(
    ("name", "text", "sentence"), [(name, *case) for name in TEXTS for case in TEXTS[name]]
)
def test_a_file_that_is_no_table_is_one_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=f"{name}(, line 2)?: .*{sentence}"):
        read(tmp_path / name)


def test_a_table_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list.csv: no such file; set data.path to a table \(.csv"):
        read(tmp_path / "list.csv")
    with pytest.raises(DataError, match="a folder, and no table"):
        read(tmp_path)


def test_pictures_that_are_missing_are_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(tmp_path, ["crow", "gull"])
    rows[0]["path"], rows[7]["path"] = "pics/crow/none.png", "pics/gull/0.png/deeper.png"
    assert own_pictures.do("data", tmp_path, "csv", csv(tmp_path / "list.csv", rows)) == 2
    said = capsys.readouterr().err
    assert "2 of 10 pictures do not decode in full" in said
    assert "crow/none.png: missing" in said


def test_two_tables_of_one_folder_have_data_of_their_own(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, ["crow", "gull"])
    for name in ("one.csv", "two.csv"):
        assert own_pictures.do("data", tmp_path, "csv", csv(tmp_path / name, rows)) == 0
    assert len(list((tmp_path / "data").glob("csv-*"))) == 2
