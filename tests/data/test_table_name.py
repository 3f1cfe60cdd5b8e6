"""The name of a sample table, and the table that is prepared where the one of a configuration is not."""

from pathlib import Path

import pytest

from pipeline.config.schema import Config
from pipeline.data.table_name import prepared_instead, table_name

WANTED = "samples-val0.1-seed0.csv"


@pytest.mark.parametrize(
    ("other", "keys"),
    [
        ("samples-val0.1-seed0-skip.csv", "data.on_bad=skip"),
        ("samples-val0.1-seed3.csv", "seed=3"),
        ("samples-val0.25-seed0.csv", "data.val_fraction=0.25"),
        ("samples-val1e-05-seed0.csv", "data.val_fraction=1e-05"),
        ("samples-val40-seed0.csv", "data.val_images=40"),
        ("samples-fold1of5-seed0.csv", "data.fold=1, data.folds=5"),
        ("samples-val0.1-train90-test30-seed0.csv", "data.train_images=90, data.test_images=30"),
        ("samples-val0.1-test0.5-seed0.csv", "data.test_fraction=0.5"),
        ("samples-val0.1-test30-test0.5-seed0.csv", "data.test_images=30, data.test_fraction=0.5"),
        ("samples-val0.1-seed0-corrected-0123abcd.csv", "data.corrections=a file of digest 0123abcd"),
    ],
)
def test_the_table_that_is_prepared_instead_is_named_with_the_keys_that_differ(
    tmp_path: Path, other: str, keys: str
) -> None:
    (tmp_path / other).touch()
    assert prepared_instead(tmp_path / WANTED) == f"; prepared here is {other} ({keys})"


def test_a_key_that_the_missing_table_has_alone_is_given_its_default(tmp_path: Path) -> None:
    (tmp_path / WANTED).touch()
    wanted = {
        "samples-val0.1-seed0-skip.csv": "data.on_bad=error",
        "samples-fold1of5-seed0.csv": "data.folds=null, data.val_fraction=0.1",
        "samples-val0.1-train90-test0.5-seed0.csv": "data.train_images=null, data.test_fraction=0.2",
        "samples-val0.1-seed0-corrected-0123abcd.csv": "data.corrections=null",
    }
    for name, keys in wanted.items():
        assert prepared_instead(tmp_path / name) == f"; prepared here is {WANTED} ({keys})"


def test_the_nearest_is_named_and_other_files_are_not(tmp_path: Path) -> None:
    for name in ("samples-val0.1-seed0.1.csv", "samples-notes.csv", "skipped-val0.1-seed0.csv"):
        (tmp_path / name).touch()
    assert prepared_instead(tmp_path / WANTED) == ""
    assert prepared_instead(tmp_path / "nowhere" / WANTED) == ""
    for name in ("samples-val0.2-seed1-skip.csv", "samples-val0.1-seed0-skip.csv"):
        (tmp_path / name).touch()
    assert "samples-val0.1-seed0-skip.csv (data.on_bad=skip)" in prepared_instead(tmp_path / WANTED)


def test_every_part_of_a_name_is_read(tmp_path: Path) -> None:
    data = {"train_images": 9, "test_images": 5, "test_fraction": 0.3, "on_bad": "skip"}
    given = {"source": "folder", "path": tmp_path, **data}
    name = table_name(Config.model_validate({"data": given, "seed": 4}))
    (tmp_path / name).touch()
    said = prepared_instead(tmp_path / WANTED)
    assert all(f"data.{key}={value}" in said for key, value in data.items())
    assert "seed=4" in said
