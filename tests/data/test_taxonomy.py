"""Hierarchies: what a table says of the classes, what is refused, and what a source brings."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.common.errors import DataError
from pipeline.data import prepare, taxonomy
from pipeline.data.sources.class_folders import ClassFolders
from pipeline.data.taxonomy import Taxonomy
from tests.helpers import own_pictures, tiny

CLASSES = ["Arctic tern", "crow", "NA", "007"]
TABLE = "class,genus,family\ncrow,Corvus,Corvidae\nArctic tern,Sterna,Laridae\n007,Corvus,Corvidae\nNA,nan,Laridae\n"


def read(tmp: Path, text: str, classes: list[str] = CLASSES) -> Taxonomy:
    path = tmp / "tree.csv"
    path.write_bytes(text.encode())
    return taxonomy.read(path, classes)


def test_the_nodes_of_each_class_in_the_order_of_the_labels(tmp_path: Path) -> None:
    found = read(tmp_path, TABLE)
    assert found.classes == tuple(CLASSES)
    assert found.ranks == ("genus", "family")
    assert found.nodes["genus"] == ("Sterna", "Corvus", "nan", "Corvus")
    assert found.names("genus") == ["Corvus", "Sterna", "nan"]
    assert found.node_of_class("genus").tolist() == [1, 0, 2, 0]
    assert str(found) == "3 genus, 2 family"


def test_the_probability_of_a_node_is_the_sum_over_its_classes(tmp_path: Path) -> None:
    found = read(tmp_path, TABLE)
    probability = np.array([[0.5, 0.2, 0.25, 0.05], [0, 1, 0, 0]])
    assert found.sums("genus", probability) == pytest.approx(np.array([[0.25, 0.5, 0.25], [1, 0, 0]]))
    assert found.sums("family", probability) == pytest.approx(np.array([[0.25, 0.75], [1, 0]]))


def test_what_is_written_is_read_and_the_order_of_the_rows_is_no_difference(tmp_path: Path) -> None:
    found = read(tmp_path, TABLE)
    found.write(tmp_path / "kept.csv")
    kept = taxonomy.read(tmp_path / "kept.csv", CLASSES)
    assert kept == found and kept.digest == found.digest
    header, *rows = TABLE.splitlines()
    assert read(tmp_path, "\n".join([header, *rows[::-1]])).digest == found.digest
    assert read(tmp_path, TABLE.replace("Sterna", "Onychoprion")).digest != found.digest


def test_semicolons_a_mark_spaces_and_decomposed_accents_are_no_difference(tmp_path: Path) -> None:
    text = "\ufefffamily;class\r\n Mo\u0308wen ;Sturmmo\u0308we\r\nM\u00f6wen;tern\r\n"
    found = read(tmp_path, text, ["tern", "Sturmm\u00f6we"])
    assert found.nodes == {"family": ("M\u00f6wen", "M\u00f6wen")}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("crow,Corvus,Corvidae\n", ""), r"no row for these classes: crow \(1 in all\); add one for each"),
        (
            ("NA,", "rook,Corvus,Corvidae\nNA,"),
            r"no such class among the 4 of the data set: rook \(1 in all\); give the names",
        ),
        (("NA,nan,Laridae\n", "NA,nan,Laridae\n" * 2), r"classes more than once: NA \(1 in all\); give each"),
        (
            ("007,Corvus,Corvidae", "007,Corvus,Laridae"),
            r"genus Corvus stands in more than one family: Corvidae, Laridae \(2 in all\); give it one",
        ),
        (
            ("007,Corvus", "007,corvus"),
            r"column genus that differ only in case: Corvus / corvus \(1 in all\)",
        ),
        (("007,Corvus", "007, "), r"no genus of 007 \(1 in all\); name one for each class"),
        (("genus,family", "genus,Genus"), r"ranks that differ only in case: Genus / genus \(1 in all\)"),
        (("genus,family", "genus,genus"), "a column stands there twice"),
        (("genus,family", "genus,"), "a column without a name; name it after its rank"),
        (
            ("class,", "species,"),
            r"has the columns species, genus, family \(3 in all\); give the column class",
        ),
        (("007,Corvus,Corvidae", "007,Corvus,Corvidae,x"), "more cells than the first line has columns: 3"),
        (("Sterna", '"Ster\rna"'), "column genus with a carriage return or a zero byte"),
        (("Sterna", '"Sterna'), "no readable table"),
    ],
)
def test_what_is_no_hierarchy_is_one_sentence(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as error:
        read(tmp_path, TABLE.replace(*change))
    assert str(error.value).startswith(f"{tmp_path / 'tree.csv'}: ") and "\n" not in str(error.value)


def test_a_table_without_a_rank_and_a_missing_file_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the columns class \(1 in all\); give the column class, and a"):
        read(tmp_path, "class\ncrow\n")
    with pytest.raises(DataError, match=r"none\.csv: no such file; set data\.taxonomy"):
        taxonomy.read(tmp_path / "none.csv", CLASSES)


def test_all_kinds_of_faults_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, "class,genus\ncrow,\nrook,Corvus\n")
    assert str(error.value).count("\n") == 2


def test_a_wrong_hierarchy_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = own_pictures.class_folders(tmp_path / "birds", ["crow", "owl"])
    (tmp_path / "tree.csv").write_text("class,family\ncrow,Corvidae\n")
    key = f"data.taxonomy={tmp_path / 'tree.csv'}"
    assert own_pictures.do("data", tmp_path, "folder", birds, key) == 2
    assert f"error: {tmp_path / 'tree.csv'}: no row for these classes: owl" in capsys.readouterr().err
    assert not list((tmp_path / "data").glob("*/*"))


class WithFamilies(ClassFolders):
    """Class folders that bring a hierarchy, as some data sets do."""

    def taxonomy(self, root: Path) -> pd.DataFrame:
        """A family of each class, by its first letter."""
        names = sorted({path.name for path in root.iterdir()})
        return pd.DataFrame({"class": names, "family": [name[0].upper() for name in names]})


def test_the_hierarchy_that_a_source_brings_is_kept_beside_the_data_and_a_file_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.sources.source.SOURCES", {"folder": WithFamilies})
    birds = own_pictures.class_folders(tmp_path / "birds", ["crow", "chough", "owl"])
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    assert "taxonomy  2 family" in capsys.readouterr().err

    def found(**keys: object) -> Taxonomy | None:
        data = own_pictures.config("folder", birds, **keys)
        return prepare.load(tiny.config(tmp_path).model_copy(update={"data": data})).taxonomy

    assert found() == Taxonomy(("chough", "crow", "owl"), {"family": ("C", "C", "O")})
    birds.rename(tmp_path / "elsewhere")
    assert found() == Taxonomy(("chough", "crow", "owl"), {"family": ("C", "C", "O")}), "it needs no source"
    (tmp_path / "tree.csv").write_text("class,order\ncrow,x\nowl,y\nchough,x\n")
    assert found(taxonomy=tmp_path / "tree.csv") == Taxonomy(
        ("chough", "crow", "owl"), {"order": ("x", "x", "y")}
    )
    (kept,) = (tmp_path / "data").glob("*/hierarchy.csv")
    kept.write_text("class,family\n")
    with pytest.raises(
        DataError,
        match="has changed since it was made: .*; run `plumage data` with the same --config and keys",
    ):
        found()


def test_a_hierarchy_that_the_source_no_longer_has_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.sources.source.SOURCES", {"folder": WithFamilies})
    birds = own_pictures.class_folders(tmp_path / "birds", ["crow", "chough", "owl"])
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    monkeypatch.setattr("pipeline.data.sources.source.SOURCES", {"folder": ClassFolders})
    config = tiny.config(tmp_path).model_copy(update={"data": own_pictures.config("folder", birds)})
    (due,) = prepare.outdated(config, birds)
    assert due == "hierarchy.csv (the source has none now)"
    own_pictures.class_folders(birds, ["gull"])
    capsys.readouterr()
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    said = capsys.readouterr().err
    assert "hierarchy.csv is removed, which `data` had made" in said and "taxonomy  2 family" not in said
    assert not list((tmp_path / "data").glob("*/hierarchy*"))
    assert prepare.load(config).taxonomy is None
    assert prepare.outdated(config, birds) == []


def test_data_without_a_hierarchy_have_none(birds: Path, tmp_path: Path) -> None:
    assert prepare.load(tiny.config(birds)).taxonomy is None
