"""Corrections: decisions of a person make another sample table, and what does not fit is one sentence."""

import tarfile
from pathlib import Path

import pandas as pd
import pytest

from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.data import corrections, prepare, sample_table, stages
from pipeline.data.sources.drawn_birds import dataset
from tests.helpers import own_pictures, tiny
from tests.helpers.own_pictures import class_folders

NAMES = ["crow", "gull, great", "owl"]
HEADER = "id,label,who,when,why\n"


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Three classes of ten pictures: ids 1 to 10, 11 to 20 and 21 to 30."""
    return class_folders(tmp_path / "birds", NAMES, count=10)


def written(tmp: Path, text: str) -> str:
    (tmp / "decisions.csv").write_text(text, encoding="utf-8")
    return f"data.corrections={tmp / 'decisions.csv'}"


def table(tmp: Path, pattern: str = "samples-val0.1-seed0.csv") -> pd.DataFrame:
    (path,) = (tmp / "data").glob(f"*/{pattern}")
    return sample_table.read(path)


def test_another_table_beside_the_untouched_one_with_the_splits_of_before(
    tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    before = table(tmp_path)
    test_ids = before.loc[before["split"] == "test", "id"]
    assert {12, 14} <= set(before["id"])
    capsys.readouterr()
    text = f'{HEADER}12,owl,Ann,2026-11-26,"beak, hooked"\n{test_ids.iloc[0]},owl,,,\n14,drop,,,blurred\n'
    text += "3,crow,,,\n5,,Ann,,?\n"
    key = written(tmp_path, text)
    assert own_pictures.do("data", tmp_path, "folder", birds, key) == 0
    said = capsys.readouterr().err
    assert "2 relabelled, 1 dropped by" in said
    assert "store  " in said and "is up to date" in said, "the pictures are not decoded again"
    pd.testing.assert_frame_equal(table(tmp_path), before)
    after = table(tmp_path, "samples-val0.1-seed0-corrected-*.csv")
    expected = before[before["id"] != 14].reset_index(drop=True)
    changed = expected["id"].isin([12, test_ids.iloc[0]])
    assert changed.sum() == 2
    expected.loc[changed, ["label", "class_name"]] = [2, "owl"]
    pd.testing.assert_frame_equal(after, expected)
    assert sample_table.digest(after) != sample_table.digest(before)
    (listed,) = (tmp_path / "data").glob("*/corrected-val0.1-seed0-corrected-*.csv")
    rows = pd.read_csv(listed, keep_default_na=False).set_index("id")
    assert rows.loc[12, ["class_name", "decision", "who", "when", "why"]].tolist() == [
        *("gull, great", "owl", "Ann", "2026-11-26", "beak, hooked")
    ]
    assert rows.loc[14, "decision"] == "drop"
    assert len(rows) == 3
    assert own_pictures.do("train", tmp_path, "folder", birds, key) == 0
    capsys.readouterr()
    assert own_pictures.do("eval", tmp_path, "folder", birds, "report.write=false") == 2
    assert "was trained on another sample table" in capsys.readouterr().err
    assert own_pictures.do("train", tmp_path, "folder", birds, "train.resume=auto") == 2
    assert "was trained on another sample table" in capsys.readouterr().err
    moved = f"data.corrections={(tmp_path / 'decisions.csv').rename(tmp_path / 'moved.csv')}"
    more = [moved, "train.resume=auto", "train.epochs=2", "train.resume_force=true"]
    assert own_pictures.do("train", tmp_path, "folder", birds, *more) == 0


def test_compare_tells_a_test_with_other_labels_from_that_of_before(
    tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    samples = table(tmp_path)
    test_id = samples.loc[samples["split"] == "test", "id"].iloc[0]
    key = written(tmp_path, f"{HEADER}{test_id},owl,,,\n")
    assert own_pictures.do("data", tmp_path, "folder", birds, key) == 0
    for more in (["run.name=before"], ["run.name=after", key]):
        for verb in ("train", "eval"):
            assert own_pictures.do(verb, tmp_path, "folder", birds, "report.write=false", *more) == 0
    capsys.readouterr()
    assert tiny.run(["compare", str(tmp_path / "runs/before"), str(tmp_path / "runs/after")]) == 2
    assert f"first for image id {test_id}; compare runs on the same data" in capsys.readouterr().err


def test_the_list_of_what_was_changed_makes_the_same_table(tmp_path: Path, birds: Path) -> None:
    key = written(tmp_path, f"{HEADER}12,owl,Ann,,\n14,drop,,,\n1,crow,,,\n")
    assert own_pictures.do("data", tmp_path, "folder", birds, key) == 0
    (listed,) = (tmp_path / "data").glob("*/corrected-*.csv")
    assert own_pictures.do("data", tmp_path, "folder", birds, f"data.corrections={listed}") == 0
    first, second = map(sample_table.read, (tmp_path / "data").glob("*/samples-*-corrected-*.csv"))
    assert sample_table.digest(first) == sample_table.digest(second)


def test_a_table_of_other_decisions_is_not_taken_whatever_its_name(tmp_path: Path, birds: Path) -> None:
    def corrected(decision: str) -> Path:
        key = written(tmp_path, f"{HEADER}12,{decision},,,\n")
        assert own_pictures.do("data", tmp_path, "folder", birds, key) == 0
        digest = corrections.read(tmp_path / "decisions.csv").digest[:8]
        return next((tmp_path / "data").glob(f"*/samples-*-corrected-{digest}.csv"))

    owl, crow = corrected("owl"), corrected("crow")
    for of_crow, of_owl in ((crow, owl), (stages.stamp_of(crow), stages.stamp_of(owl))):
        of_owl.write_bytes(of_crow.read_bytes().replace(crow.name.encode(), owl.name.encode()))
    assert sample_table.read(corrected("owl")).set_index("id").loc[12, "class_name"] == "owl"


def test_without_a_decision_the_table_is_the_untouched_one(
    tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        own_pictures.do("data", tmp_path, "folder", birds, written(tmp_path, f"{HEADER}1,,,,\n2, ,,,\n")) == 0
    )
    assert "decides nothing" in capsys.readouterr().err
    assert len(list((tmp_path / "data").glob("*/samples-*.csv"))) == 1
    assert len(table(tmp_path)) == 30


def test_who_decided_and_the_order_do_not_make_another_table(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        (tmp_path / "d.csv").write_text(text)
        return corrections.read(tmp_path / "d.csv").digest

    first = digest("id,label,who\n1,a,Ann\n2,b,\n")
    assert digest("id;decision;label\n2;b;x\n1;a;y\n3;;z\n") == first
    assert digest("id\tlabel\n1\ta\n2\tdrop\n") != first


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{HEADER}77,owl,,,\n", r"image ids 77 \(1 in all\) are not in the data set"),
        (f"{HEADER}7,Owl,,,\n8,hen,,,\n", r"Owl, hen \(2 in all\): no such class"),
        (f"{HEADER}7,owl,,,\n7,drop,,,\n", r"more than one decision for image ids 7 \(1 in all\)"),
        (HEADER + "".join(f"{n},drop,,,\n" for n in range(1, 11)), r"leaves no picture of crow \(1 in all\)"),
        (f"{HEADER}seven,owl,,,\n", r"ids that are no whole numbers: seven \(1 in all\)"),
        (
            "number,label\n7,owl\n",
            r"has the columns number, label \(2 in all\); give the columns id and label",
        ),
        ("id,label,label\n7,owl,owl\n", "a column stands there twice among id, label, label"),
        ("id,label\n7,gull, great\n", r"more cells than the first line has columns: 1 \(1 in all\)"),
        ('id,label\n7,"owl\n', "no readable table"),
        ("", "an empty file"),
        (f"{HEADER}7,\x1bowl,,,\n", r"'\\x1bowl' \(1 in all\): no such class"),
        (
            "id,path,decision\n1,crow/9.png,owl\n",
            r"crow/9\.png \(1 in all\) have other ids in the data set now",
        ),
        ("7 1\n8 2\n", "has the numbers of images of CUB-200-2011, and these are others"),
        ("7 1\nx\n", r"lines that are no id and class: x \(1 in all\)"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_nothing_is_made(
    tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    key = written(tmp_path, text)
    assert own_pictures.do("data", tmp_path, "folder", birds, key) == 2
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {tmp_path / 'decisions.csv'}: ")
    with pytest.raises(DataError, match=sentence):
        raise DataError(said)
    assert not list((tmp_path / "data").glob("*/*"))
    assert (tmp_path / "decisions.csv").read_text() == text


def test_a_missing_file_is_named(tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert own_pictures.do("data", tmp_path, "folder", birds, f"data.corrections={tmp_path / 'no.csv'}") == 2
    assert "no.csv: no such file; set data.corrections" in capsys.readouterr().err


def test_drop_is_refused_where_a_class_has_this_name(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("id,label\n1,drop\n")
    images = pd.DataFrame({"id": [1, 2], "path": ["a", "b"], "label": [0, 1], "class_name": ["drop", "owl"]})
    with pytest.raises(DataError, match="`drop` may mean the class of that name"):
        corrections.changes(corrections.read(tmp_path / "d.csv"), images, "folder")


def test_accents_and_a_spreadsheets_mark_and_semicolons_are_no_difference(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes("\ufeff\r\nid;label\r\n1;Sperbermo\u0308we \r\n".encode())
    images = pd.DataFrame(
        {
            "id": [1, 2, 3],
            "path": list("abc"),
            "label": [0, 1, 0],
            "class_name": ["owl", "Sperberm\u00f6we", "owl"],
        }
    )
    changing = corrections.changes(corrections.read(tmp_path / "d.csv"), images, "folder")
    assert changing[["id", "decision"]].to_numpy().tolist() == [[1, "Sperberm\u00f6we"]]


def test_the_file_of_cub_plus_relabels_and_drops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    dataset.write(drawn, species=3, images_per_species=4, train_per_species=2, long_side_px=64, seed=0)
    with tarfile.open(tmp_path / "birds.tgz", "w:gz") as tar:
        for path in sorted(drawn.iterdir()):
            tar.add(path, path.name)
    (tmp_path / "cubplus.txt").write_text(
        "12 3\n11 3\n10 60\n9 3\n8 2\n6 1\n5 2\n4 1\n3 1\n2 1\n1 1\n900 77\n"
    )
    keys = [
        *(f"data.archive={drawn}", f"data.root={tmp_path / 'data'}", "data.resize_px=40", "data.image_px=32"),
        f"data.corrections={tmp_path / 'cubplus.txt'}",
    ]
    assert tiny.run(["data", *keys]) == 0
    assert "1 relabelled, 2 dropped by" in capsys.readouterr().err
    after = table(tmp_path, "samples-*-corrected-*.csv").set_index("id")
    assert set(range(1, 13)) - set(after.index) == {7, 10}, "7 is not in it, and there is no class 60"
    assert after.loc[6, "label"] == 0
    assert after["label"].value_counts().to_dict() == {0: 5, 1: 2, 2: 3}


def test_the_name_of_the_table_is_found_again(tmp_path: Path, birds: Path) -> None:
    key = written(tmp_path, f"{HEADER}12,owl,,,\n")
    assert own_pictures.do("data", tmp_path, "folder", birds, key) == 0
    data = own_pictures.config("folder", birds, corrections=tmp_path / "decisions.csv")
    assert isinstance(data, DataConfig)
    config = tiny.config(tmp_path).model_copy(
        update={"data": data.model_copy(update={"root": tmp_path / "data"})}
    )
    assert prepare.load(config).samples.set_index("id").loc[12, "class_name"] == "owl"
