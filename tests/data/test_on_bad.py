"""Pictures that cannot be read: all named as an error, or left out, listed and counted (`data.on_bad`)."""

import errno
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from pipeline.data import pictures, prepare, sample_table
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


def test_a_path_that_no_disk_holds_is_a_bad_picture_as_one_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name of more than 255 letters can be in a table, and on no disk."""
    birds = class_folders(tmp_path / "birds", NAMES, count=10)
    rows = [f"{name}/{number}.png,{name}" for name in NAMES for number in range(10)]
    table, long = birds / "list.csv", f"owl/{'x' * 300}.png"
    table.write_text("\n".join(["path,label", *rows, f"{long},owl"]))
    assert own_pictures.do("data", tmp_path, "csv", table) == 2
    assert "1 of 31 pictures do not decode in full" in capsys.readouterr().err
    assert own_pictures.do("data", tmp_path, "csv", table, "data.on_bad=skip") == 0
    (listed,) = (tmp_path / "data").glob("csv-*/skipped-*.csv")
    skipped = pd.read_csv(listed, dtype=str)
    assert skipped["path"].tolist() == [long]
    assert "name too long" in skipped["reason"][0].lower()


def test_skip_and_error_do_not_take_each_others_data(
    tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 0
    assert own_pictures.do("train", tmp_path, "folder", birds) == 2
    assert capsys.readouterr().err.endswith(
        "samples-val0.1-seed0.csv: missing; run `plumage data` with the same --config and keys; prepared here is "
        "samples-val0.1-seed0-skip.csv (data.on_bad=skip)\n"
    )
    assert own_pictures.do("data", tmp_path, "folder", birds) == 2
    for picture in ("crow/broken.jpg", "gull/3.png", "owl/gone.png"):
        (birds / picture).unlink()
        (birds / picture).write_bytes((birds / "owl" / "1.png").read_bytes())
    (birds / "crow" / "broken.jpg").rename(birds / "crow" / "mended.png")
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 0
    assert prepared(tmp_path, "skipped-*.csv").empty
    assert own_pictures.do("data", tmp_path, "folder", birds) == 0
    assert len(prepared(tmp_path, "samples-val0.1-seed0.csv")) == 32


def test_skip_and_error_have_stores_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    birds = class_folders(tmp_path / "birds", NAMES)
    for key in ("skip", "error"):
        assert own_pictures.do("data", tmp_path, "folder", birds, f"data.on_bad={key}") == 0
    capsys.readouterr()
    for key in ("skip", "error"):
        assert own_pictures.do("data", tmp_path, "folder", birds, f"data.on_bad={key}") == 0
    assert capsys.readouterr().err.count("is up to date") == 4
    stores = sorted(path.parent.name for path in (tmp_path / "data").glob("*/*/pixels.bin"))
    assert stores == ["store-squash20-packed", "store-squash20-packed-skip"]


@pytest.mark.parametrize(
    ("cause", "sentence"),
    [
        (OSError(errno.EIO, "Input/output error"), "the disk failed to read or write it"),
        (OSError(errno.EMFILE, "Too many open files"), "too many files are open"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission to read or write it"),
        (MemoryError(), "no memory is left to decode it; end some programs and run again"),
    ],
)
def test_what_lies_in_the_machine_leaves_no_picture_out(
    tmp_path: Path,
    cause: Exception,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    birds = class_folders(tmp_path / "birds", NAMES)

    def failing(image: Image.Image) -> None:
        if image.fp.name.endswith("owl/1.png"):
            raise cause
        whole(image)

    whole = PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", failing)
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 2
    assert f"error: {birds / 'owl/1.png'}: {sentence}" in capsys.readouterr().err
    assert not list((tmp_path / "data").glob("*/skipped-*.csv"))
    monkeypatch.undo()
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 0
    assert prepared(tmp_path, "skipped-*.csv").empty


def test_a_format_that_can_be_read_now_brings_its_pictures_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    birds = class_folders(tmp_path / "birds", NAMES)
    Image.new("RGB", (24, 20)).save(birds / "owl" / "one.gif")
    formats = list(pictures.FORMATS)
    without = [name for name in formats if name != "GIF"]

    def skipped_with(readable: list[str], *more: str) -> list[str]:
        monkeypatch.setattr(pictures, "FORMATS", readable)
        monkeypatch.setattr(prepare, "FORMATS", readable)
        assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip", *more) == 0
        return prepared(tmp_path, "skipped-*.csv")["path"].tolist()

    assert skipped_with(without) == ["owl/one.gif"]
    assert skipped_with(formats) == []
    assert skipped_with(without, "data.resize_px=24") == ["owl/one.gif"], (
        "a store of another size, and fewer formats"
    )
    assert skipped_with(without) == ["owl/one.gif"]


def test_a_list_of_skipped_pictures_that_is_gone_is_no_fault(
    tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 0
    (listed,) = (tmp_path / "data").glob("*/skipped-*.csv")
    listed.unlink()
    capsys.readouterr()
    assert own_pictures.do("data", tmp_path, "folder", birds, "data.on_bad=skip") == 0
    kept = listed.parent / "store-squash20-packed-skip" / "skipped.csv"
    assert f"skipped  3 pictures that cannot be read, listed in {kept}" in capsys.readouterr().err


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
