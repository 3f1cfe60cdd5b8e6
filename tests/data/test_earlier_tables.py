"""A sample table whose content changes is kept beside the new one, and what became of its test is said."""

from pathlib import Path

import pytest

from pipeline.data import earlier_tables, sample_table
from tests.helpers import own_pictures
from tests.helpers.own_pictures import class_folders, draw

NAME = "samples-val0.1-seed0"


def tables(tmp: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp / "data").glob("folder-*/samples-*.csv")}


def prepare(tmp: Path, birds: Path, *more: str) -> dict[str, bytes]:
    assert own_pictures.do("data", tmp, "folder", birds, *more) == 0
    return tables(tmp)


def splits(content: bytes, folder: Path) -> dict[str, str]:
    path = folder / "table.csv"
    path.write_bytes(content)
    table = sample_table.read(path)
    return dict(zip(table["path"], table["split"], strict=True))


def test_one_more_picture_keeps_the_earlier_table_and_says_where_its_test_is_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"], 20)
    before = prepare(tmp_path, birds)
    assert "have changed" not in capsys.readouterr().err
    draw(birds / "crow" / "00.png")
    after = prepare(tmp_path, birds)
    assert after[f"{NAME}.1.csv"] == before[f"{NAME}.csv"]
    old, new = (splits(content, tmp_path) for content in (before[f"{NAME}.csv"], after[f"{NAME}.csv"]))
    moved = sum(old[path] == "test" and new[path] != "test" for path in old)
    assert moved > 1
    (folder,) = (tmp_path / "data").glob("folder-*")
    assert (
        f"the pictures have changed (+1, -0): {moved} test pictures of before are now in train or validation; the "
        f"earlier table is kept as {folder / NAME}.1.csv"
    ) in capsys.readouterr().err


def test_each_earlier_table_is_kept_once_and_none_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"], 6)
    first = prepare(tmp_path, birds)[f"{NAME}.csv"]
    draw(birds / "crow" / "00.png")
    second = prepare(tmp_path, birds)[f"{NAME}.csv"]
    (birds / "crow" / "00.png").unlink()
    capsys.readouterr()
    assert prepare(tmp_path, birds) == {
        f"{NAME}.csv": first,
        f"{NAME}.1.csv": first,
        f"{NAME}.2.csv": second,
    }
    assert "the pictures have changed (+0, -1): " in capsys.readouterr().err
    draw(birds / "crow" / "00.png")
    assert set(prepare(tmp_path, birds)) == {f"{NAME}.csv", f"{NAME}.1.csv", f"{NAME}.2.csv"}
    assert f"is kept as {next((tmp_path / 'data').glob('folder-*')) / NAME}.1.csv" in capsys.readouterr().err


def test_a_table_made_again_with_the_same_content_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"], 6)
    before = prepare(tmp_path, birds)
    draw(birds / "crow" / "1.png", 90)  # another picture of the same name: store and table are made anew
    (table,) = (tmp_path / "data").glob("folder-*/samples-*.csv")
    assert set(prepare(tmp_path, birds)) == set(before)
    table.write_text("damaged")
    assert set(prepare(tmp_path, birds)) == set(before)
    said = capsys.readouterr().err
    assert said.count("is made anew") == 3
    assert "have changed" not in said
    assert "is kept as" not in said


def test_other_splits_of_the_same_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"], 6)
    prepare(tmp_path, birds)
    (path,) = (tmp_path / "data").glob("folder-*/samples-*.csv")
    new = sample_table.read(path)
    first = int((new["split"] == "test").to_numpy().argmax())
    new.loc[first, "split"] = "train"
    earlier_tables.keep(path, new)
    assert (
        "the sample table has changed, and the pictures are the same: 1 test picture of before is now in train or "
        "validation; the earlier table is kept as"
    ) in capsys.readouterr().err


def test_a_run_on_the_earlier_table_is_refused_with_the_reason_and_read_with_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    birds = class_folders(tmp_path / "birds", ["crow", "gull"], 6)
    prepare(tmp_path, birds)
    assert own_pictures.do("train", tmp_path, "folder", birds) == 0
    draw(birds / "crow" / "00.png")
    prepare(tmp_path, birds)
    capsys.readouterr()
    assert own_pictures.do("eval", tmp_path, "folder", birds, "report.write=false") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "or the pictures of data.path have changed since, and `plumage data` kept the earlier table beside the new one"
    ) in said
    (birds / "crow" / "00.png").unlink()
    prepare(tmp_path, birds)
    assert own_pictures.do("eval", tmp_path, "folder", birds, "report.write=false") == 0
