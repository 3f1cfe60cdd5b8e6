"""Data sets of Hugging Face's library, from small folders in its formats."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image as PillowImage

from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.data import prepare, sample_table
from pipeline.data.pictures import Layout, picture
from pipeline.data.sources.hugging_face import HuggingFace
from tests.helpers.own_pictures import class_folders, do

NAMES = ["great tit", "007"]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})


def part(count: int, features: datasets.Features = FEATURES, **columns: list[Any]) -> datasets.Dataset:
    """`count` pictures of each class, the second class brighter, in PNG, which loses nothing."""
    rng = np.random.default_rng(count)
    shades = [rng.integers(0, 90, (20, 24, 3)) + 100 * (row % 2) for row in range(2 * count)]
    pictures = [PillowImage.fromarray(shade.astype(np.uint8)) for shade in shades]
    rows = {"image": pictures, "label": [row % 2 for row in range(2 * count)], **columns}
    return datasets.Dataset.from_dict({name: rows[name] for name in features}, features=features)


def saved(folder: Path) -> None:
    datasets.DatasetDict({"train": part(6), "validation": part(2), "test": part(3)}).save_to_disk(str(folder))


def folders(folder: Path) -> None:
    for split, count in (("train", 6), ("validation", 2), ("test", 3)):
        class_folders(folder / split, NAMES, count)


def parquet(folder: Path) -> None:
    folder.mkdir()
    for split, count in (("train", 6), ("validation", 2), ("test", 3)):
        part(count).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


@pytest.mark.parametrize("write", [saved, folders, parquet])
def test_from_a_folder_of_each_format_to_predictions(
    write: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    write(given)
    files = sorted(given.rglob("*"))
    for verb in ("data", "train", "eval"):
        assert do(verb, tmp_path, "hugging_face", given, "report.write=false") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 6
    assert sorted(given.rglob("*")) == files  # nothing is written into the user's folder
    (table,) = (tmp_path / "data").glob("hugging_face-*/samples-*.csv")
    counts = sample_table.read(table).groupby(["class_name", "split"]).size()
    assert counts.to_dict() == {
        (name, split): count for name in NAMES for split, count in (("train", 6), ("val", 2), ("test", 3))
    }
    shown = next((tmp_path / "data").glob("hugging_face-*/raw/images/test/*"))
    assert do("predict", tmp_path, "hugging_face", given, str(shown)) == 0
    classes = json.loads(capsys.readouterr().out)["predictions"][0]["classes"]
    assert {entry["class"] for entry in classes} == set(NAMES)
    shutil.rmtree(given)  # what was prepared from it stays
    assert do("data", tmp_path, "hugging_face", given) == 0


def source(folder: Path) -> HuggingFace:
    keys = {"source": "hugging_face", "path": folder, "root": folder.parent / "data"}
    return HuggingFace(DataConfig.model_validate(keys))


def export(folder: Path) -> Any:
    """The sample table of a folder."""
    made = source(folder)
    raw = folder.parent / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir()
    made.fetch(raw)
    return made.read(made.find_root(raw))


def test_pictures_are_taken_byte_for_byte_and_rows_keep_their_order(tmp_path: Path) -> None:
    rows = part(4)
    rows.save_to_disk(str(tmp_path / "given"))
    table = export(tmp_path / "given")
    assert table["class_name"].tolist() == [NAMES[row % 2] for row in range(8)]
    assert set(table["official"]) == {sample_table.EITHER}  # one part: a test is drawn
    layout = Layout("squash", 20, "packed")
    reference = tmp_path / "reference.png"
    for path, row in zip(table["path"], rows, strict=True):
        row["image"].save(reference)
        assert np.array_equal(picture(tmp_path / "raw" / path, layout), picture(reference, layout))


def test_other_pictures_of_the_same_classes_are_exported_and_stored_anew(tmp_path: Path) -> None:
    given = tmp_path / "given"
    for shade in (10, 200):
        shutil.rmtree(given, ignore_errors=True)
        part(5, image=[PillowImage.new("RGB", (24, 20), (shade,) * 3)] * 10).save_to_disk(str(given))
        assert do("data", tmp_path, "hugging_face", given) == 0
        (pixels,) = (tmp_path / "data").glob("*/store-*/pixels.bin")
        assert set(pixels.read_bytes()) == {shade}


def test_classes_may_be_texts_under_another_name(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "bird": datasets.Value("string")})
    part(4, features, bird=["NA", "1e5"] * 4).save_to_disk(str(tmp_path / "given"))
    assert sample_table.class_names(export(tmp_path / "given")) == ["1e5", "NA"]


def test_of_several_columns_that_named_label_is_taken(tmp_path: Path) -> None:
    features = datasets.Features({**FEATURES, "family": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = part(4, features, family=[0] * 8)
    rows.save_to_disk(str(tmp_path / "given"))
    assert sample_table.class_names(export(tmp_path / "given")) == ["007", "great tit"]
    rows.rename_column("label", "species").save_to_disk(str(tmp_path / "two"))
    with pytest.raises(
        DataError,
        match=r"columns species, family \(2 in all\), one of which may be that of classes; name it label",
    ):
        export(tmp_path / "two")


def without_pictures() -> datasets.Dataset:
    return part(2).remove_columns("image")


def without_classes() -> datasets.Dataset:
    return part(2).remove_columns("label")


def without_a_label() -> datasets.Dataset:
    return part(2, label=[0, 1, -1, 0])


def without_a_picture() -> datasets.Dataset:
    return part(1, image=[PillowImage.new("RGB", (9, 9)), None])


def alike() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    return part(2, features, label=["crow", "Crow"] * 2)


def other_splits() -> datasets.DatasetDict:
    return datasets.DatasetDict({"train": part(2), "unlabelled": part(2)})


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (without_pictures, "no column of pictures; name it image and save the data set again"),
        (without_classes, "no column of classes; name it label"),
        (without_a_label, r"without a class: row 2 \(1 in all\); save the data set again without"),
        (without_a_picture, r"no data set that the package datasets reads \(row 1 has no picture\)"),
        (alike, "labels that differ only in case, accents' coding or spaces: Crow / crow"),
        (other_splits, r"splits other than train, val and test: unlabelled \(1 in all\); rename"),
    ],
)
def test_what_is_missing_or_unclear_is_one_sentence(tmp_path: Path, made: Any, why: str) -> None:
    made().save_to_disk(str(tmp_path / "given"))
    with pytest.raises(DataError, match=rf"^{tmp_path / 'given'}: {why}"):
        export(tmp_path / "given")


def test_a_damaged_or_empty_folder_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "given")
    (tmp_path / "given" / "test" / "state.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for name in ("given", "empty"):
        assert do("data", tmp_path, "hugging_face", tmp_path / name) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{name}: no data set that the package datasets reads (" in error
    assert not list((tmp_path / "data").glob("*/raw"))
    assert do("data", tmp_path, "hugging_face", tmp_path / "gone") == 2
    assert "gone: no such folder, and no name of a data set of the hub" in capsys.readouterr().err


def test_data_root_lies_outside_of_the_folder(tmp_path: Path) -> None:
    saved(tmp_path / "given")
    keys = {"source": "hugging_face", "path": tmp_path / "given", "root": tmp_path / "given" / "data"}
    with pytest.raises(DataError, match="nothing is written into a folder of yours"):
        HuggingFace(DataConfig.model_validate(keys)).fetch(tmp_path)


def test_without_the_package_the_sentence_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "given")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package datasets; .*pip install --editable '\.\[hub\]'"):
        export(tmp_path / "given")


def test_a_name_of_the_hub_is_loaded_by_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub cannot be reached by a test: its loader is replaced, by its public name."""
    asked = []

    def load_dataset(name: str, cache_dir: str | None) -> datasets.DatasetDict:
        asked.append((name, cache_dir))
        return datasets.DatasetDict({"train": part(3), "test": part(2)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    keys = {"source": "hugging_face", "path": Path("owner/birds"), "root": tmp_path / "data"}
    made = HuggingFace(DataConfig.model_validate(keys))
    assert made.inputs == {"hub": "owner/birds"}
    root = prepare.fetch(made.config)
    assert made.read(root)["official"].value_counts().to_dict() == {"train": 6, "test": 4}
    prepare.fetch(made.config)
    assert asked == [("owner/birds", None)]


@pytest.mark.parametrize("write", [saved, folders])
def test_a_picture_that_does_not_decode_is_named_by_its_row_and_mended_at_its_source(
    write: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    write(given)
    row, file = 5, ""
    if write is folders:
        bad = given / "train" / "great tit" / "2.png"
        good = bad.read_bytes()
        bad.write_bytes(good[:60])
        row, file = 8, ", train/great tit/2.png"
    else:
        kept = datasets.load_from_disk(str(given))
        undecoded = kept["train"].cast_column("image", datasets.Image(decode=False))
        pictures = [each["bytes"] for each in undecoded["image"]]
        pictures[row] = pictures[row][:60]
        images = [{"bytes": each, "path": None} for each in pictures]
        kept["train"] = datasets.Dataset.from_dict({"image": images, "label": undecoded["label"]}, FEATURES)
        kept.save_to_disk(str(tmp_path / "broken"))
        given = tmp_path / "broken"
    assert do("data", tmp_path, "hugging_face", given) == 2
    said = capsys.readouterr().err
    assert "1 of 22 pictures do not decode in full: " in said
    assert f"/raw/images/train/{row:07}" in said
    assert f" (train row {row}{file}): " in said
    assert f"; correct {given} (the formats are " in said
    assert (
        "), then run `plumage data` with the same --config and keys, or leave them out with data.on_bad"
        in said
    )
    assert "in their place" not in said
    if write is folders:
        bad.write_bytes(good)
        assert do("data", tmp_path, "hugging_face", given) == 0
