"""Pictures that cannot be read: all named as an error, or left out, listed and counted (`data.on_bad`)."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.data import sample_table
from tests.helpers import own_pictures, tiny
from tests.helpers.own_pictures import class_folders

NAMES = ["crow", "gull", "owl"]


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Three classes of ten pictures, three of which cannot be read."""
    birds = class_folders(tmp_path / "birds", NAMES, count=10)
    (birds / "crow" / "broken.jpg").write_text("x")
    (birds / "gull" / "3.png").write_bytes((birds / "gull" / "3.png").read_bytes()[:200])
    (birds / "owl" / "gone.png").symlink_to(tmp_path / "nowhere")
    return birds


def prepared(tmp: Path, pattern: str) -> pd.DataFrame:
    (path,) = (tmp / "data").glob(f"folder-*/{pattern}")
    return pd.read_csv(path, dtype=str)


def test_an_error_names_them_all_and_says_how_to_leave_them_out(
    tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_pictures.do("data", tmp_path, "folder", birds) == 2
    said = capsys.readouterr().err
    assert "3 of 32 pictures do not decode in full" in said
    assert said.rstrip().endswith("or leave them out with data.on_bad=skip")
    assert not list((tmp_path / "data").glob("*/store*"))


def test_skip_lists_and_counts_them_and_trains_on_the_rest(
    tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 0
    list_file = next((tmp_path / "data").glob("folder-*/skipped-val0.1-seed0-skip.csv"))
    assert f"skipped  3 pictures that cannot be read, listed in {list_file}" in capsys.readouterr().err
    skipped = prepared(tmp_path, "skipped-*.csv")
    assert skipped["path"].tolist() == ["crow/broken.jpg", "gull/3.png", "owl/gone.png"]
    assert skipped["reason"].tolist()[0] == "not a picture, or of an unknown format"
    assert skipped["reason"].tolist()[2] == "missing"
    samples = sample_table.read(next((tmp_path / "data").glob("folder-*/samples-*-skip.csv")))
    assert len(samples) == 29
    assert not set(samples["path"]) & set(skipped["path"])
    for verb in ("train", "eval"):
        assert own_pictures.do(verb, tmp_path, "folder", birds, "data.on_bad=skip", "report.write=false") == 0


def test_skip_and_error_do_not_take_each_others_data(
    tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 0
    assert own_pictures.do("train", tmp_path, "folder", birds) == 2
    assert "missing; run `make data`" in capsys.readouterr().err
    assert own_pictures.do("data", tmp_path, "folder", birds) == 2
    for picture in ("crow/broken.jpg", "gull/3.png", "owl/gone.png"):
        (birds / picture).unlink()
        (birds / picture).write_bytes((birds / "owl" / "1.png").read_bytes())
    (birds / "crow" / "broken.jpg").rename(birds / "crow" / "mended.png")
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 0
    assert prepared(tmp_path, "skipped-*.csv").empty
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    assert len(prepared(tmp_path, "samples-val0.1-seed0.csv")) == 32


def test_a_class_that_loses_all_its_pictures_is_an_error(
    tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for picture in (birds / "owl").glob("?.png"):
        picture.write_text("x")
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 2
    assert "no picture of owl (1 in all) can be read; put good copies" in capsys.readouterr().err
    for picture in birds.glob("*/?.png"):
        picture.write_text("x")
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 2
    assert "32 of 32 pictures do not decode in full" in capsys.readouterr().err


def test_skip_leaves_nothing_out_of_whole_pictures_of_another_source(tmp_path: Path) -> None:
    keys = [tiny.own_data(tmp_path), "data.on_bad=skip"]
    assert tiny.do("data", tmp_path, *keys) == 0
    (path,) = (tmp_path / "data").glob("synthetic-*/skipped-*.csv")
    assert path.read_text() == "path,reason\n"
