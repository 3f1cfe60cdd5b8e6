"""The sample table: what breaks it is said, and CSV keeps it as it is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.common import files, tables
from pipeline.common.errors import DataError
from pipeline.data import sample_table


def samples() -> pd.DataFrame:
    """Three classes, among them names that a CSV reader likes to take for missing values."""
    return pd.DataFrame(
        {
            "id": [7, 3, 5, 9],
            "path": ["a/1.jpg", "b, c/2.jpg", "b/ü.jpg", "a/3.jpg"],
            "label": [1, 0, 2, 1],
            "class_name": ["NA", "null", 'Heermann "Gull"', "NA"],
            "official": ["train", "train", "test", "train"],
            "box_x": [1.0, np.nan, 0.1, 60.0],
            "box_y": [2.5, np.nan, 0.2, 27.0],
            "box_w": [3.0, np.nan, 1 / 3, 325.0],
            "box_h": [4.0, np.nan, 1e-9, 304.0],
            "width": [500, 335, 120, 640],
            "height": [335, 500, 140, 480],
            "grey": [False, True, False, False],
            "file_bytes": [1000, 2000, 3000, 4000],
            "split": ["train", "val", "test", "train"],
        }
    )


def test_a_table_read_back_is_the_table_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "samples.csv"
    tables.write_csv(samples(), path)
    pd.testing.assert_frame_equal(sample_table.read(path), samples(), check_exact=True)


def test_names_stand_in_the_order_of_the_labels() -> None:
    assert sample_table.class_names(samples()) == ["null", "NA", 'Heermann "Gull"']


def test_a_missing_table_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"samples\.csv: missing; run `plumage data` with the same --config and keys$"
    ):
        sample_table.read(tmp_path / "samples.csv")


@pytest.mark.parametrize("content", ["", 'id,path\n1,"a\n', "id,path\n1,2,3,4\n1,2\n\x00"])
def test_a_broken_table_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "samples.csv"
    path.write_text(content)
    with pytest.raises(
        DataError, match=r"samples\.csv: .*run `plumage data` with the same --config and keys"
    ):
        sample_table.read(path)


def test_missing_columns_are_all_named() -> None:
    with pytest.raises(DataError) as caught:
        sample_table.check(samples().drop(columns=["label", "box_w"]), "here")
    assert str(caught.value).startswith("here: the columns ['label', 'box_w'] are missing;")


def test_columns_are_asked_for_only_where_they_are_needed(tmp_path: Path) -> None:
    listed = samples()[sample_table.SOURCE_COLUMNS]
    sample_table.check(listed, "here")
    with pytest.raises(DataError, match="'split'"):
        sample_table.check(listed, "here", sample_table.COLUMNS)
    tables.write_csv(listed, tmp_path / "samples.csv")
    with pytest.raises(DataError, match="'split'"):
        sample_table.read(tmp_path / "samples.csv")
    assert len(sample_table.read(tmp_path / "samples.csv", sample_table.SOURCE_COLUMNS)) == 4


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(DataError, match="here: no image is listed"):
        sample_table.check(samples().iloc[:0], "here")


def test_an_id_that_stands_twice_is_named() -> None:
    with pytest.raises(DataError, match=r"here: duplicate image ids 7 \(1 in all\)"):
        sample_table.check(samples().assign(id=[7, 3, 7, 9]), "here")


@pytest.mark.parametrize(
    "change",
    [{"label": [1, 0, 3, 1]}, {"label": [1, -1, 2, 1]}, {"class_name": ["NA", "null", "gull", "crow"]}],
    ids=["gap", "negative", "two names"],
)
def test_labels_count_from_0_with_one_name_each(change: dict[str, list[int | str]]) -> None:
    with pytest.raises(DataError, match="here: labels have to run from 0 to C-1 with one class name each"):
        sample_table.check(samples().assign(**change), "here")


@pytest.mark.parametrize("column", ["id", "path", "label", "class_name", "split"])
def test_the_digest_changes_with_what_training_and_evaluation_depend_on(column: str) -> None:
    changed = samples()
    changed.loc[0, column] = {"id": 8, "label": 2}.get(column, "other")
    assert sample_table.digest(changed) != sample_table.digest(samples())


@pytest.mark.parametrize("column", ["box_x", "width", "file_bytes"])
def test_the_digest_does_not_change_with_the_rest(column: str) -> None:
    changed = samples()
    changed.loc[0, column] = 17
    assert sample_table.digest(changed) == sample_table.digest(samples())


def test_the_digest_survives_the_file(tmp_path: Path) -> None:
    tables.write_csv(samples(), tmp_path / "samples.csv")
    assert sample_table.digest(sample_table.read(tmp_path / "samples.csv")) == sample_table.digest(samples())
    assert sample_table.digest(samples().iloc[::-1]) != sample_table.digest(samples())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": [7.5, 3, 5, 9]}, "the column id has to hold whole numbers"),
        ({"id": ["a", "b", "c", "d"]}, "the column id has to hold whole numbers"),
        ({"label": [1, 0, np.nan, 1]}, "the column label has to hold whole numbers"),
        (
            {"official": ["train", "train", "tset", "train"]},
            "the column official has to hold train, val, test, train or test",
        ),
        ({"split": ["train", "", "test", "train"]}, "the column split has to hold train, val, test"),
    ],
)
def test_a_column_holds_what_the_rest_relies_on(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    tables.write_csv(samples().assign(**change), tmp_path / "samples.csv")
    with pytest.raises(
        DataError, match=rf"samples\.csv: {words}; run `plumage data` with the same --config and keys"
    ):
        sample_table.read(tmp_path / "samples.csv")


def test_the_classes_that_a_split_lacks_stand_in_the_order_of_their_labels() -> None:
    lacking = {split: sample_table.classes_without(samples(), split) for split in sample_table.SPLITS}
    assert lacking == {
        "train": ["null", 'Heermann "Gull"'],
        "val": ["NA", 'Heermann "Gull"'],
        "test": ["null", "NA"],
    }


def test_a_table_without_gaps_has_no_sentence() -> None:
    whole = pd.concat([samples().iloc[[0, 1]].assign(split=split) for split in sample_table.SPLITS])
    assert sample_table.gaps(whole) == []
    assert [sentence.partition(";")[0] for sentence in sample_table.gaps(samples())] == [
        'no training image of null, Heermann "Gull" (2 in all): what the network says of these classes means nothing',
        'no validation image of NA, Heermann "Gull" (2 in all): validation says nothing of these classes',
        "no test image of null, NA (2 in all): the test says nothing of these classes, and means over classes leave "
        "them out",
    ]


def test_without_validation_no_class_lacks_it() -> None:
    kept = samples().assign(split=["train", "train", "train", "test"])
    assert [sentence[:10] for sentence in sample_table.gaps(kept)] == ["no test im"]
    assert sample_table.gaps(kept[kept["label"] == 1]) == []


def test_a_box_is_outside_when_more_than_a_tenth_of_it_is() -> None:
    inside = {"box_x": 0.0, "box_y": 0.0, "box_w": 100.0, "box_h": 100.0, "width": 100, "height": 100}
    changes = [{}, {"box_x": 9.0}, {"box_x": 11.0}, {"box_y": -11.0}, {"box_y": 200.0}, {"box_x": np.nan}]
    table = pd.DataFrame([{"id": number, **inside, **change} for number, change in enumerate(changes)])
    assert sample_table.boxes_outside(table) == [2, 3, 4]


def test_there_are_two_classes_and_something_to_learn_from() -> None:
    sample_table.check_learnable(samples(), "here")
    with pytest.raises(
        DataError, match="here: all images are of one class, 'NA'; there is nothing to tell apart"
    ):
        sample_table.check_learnable(samples()[samples()["label"] == 1], "here")
    with pytest.raises(
        DataError, match="here: all images are for the test; list some of each class for training"
    ):
        sample_table.check_learnable(samples().assign(official="test"), "here")
    others = samples().assign(official=["val", *["test"] * (len(samples()) - 1)])
    with pytest.raises(DataError, match="here: all images are for validation or the test; list some"):
        sample_table.check_learnable(others, "here")


def test_the_digest_is_that_of_the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    table = samples().assign(class_name='a "wren",\nof ' + "\N{GREEK SMALL LETTER ALPHA}")
    text = table[["id", "path", "label", "class_name", "split"]].to_csv(index=False)
    monkeypatch.setattr(sample_table, "ROWS_AT_ONCE", 3)
    assert len(table) > 3
    assert sample_table.digest(table) == files.digest_of(text)
