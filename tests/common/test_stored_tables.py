"""Tables and arrays on the disk: what was written is read, and damage of any kind is one sentence."""

import mmap
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.common import arrays, tables
from pipeline.common.errors import DataError

TYPES = {"id": "int64", "share": "float64", "name": str}
TABLE = pd.DataFrame({"id": range(20), "share": np.linspace(0, 1, 20), "name": ['NA, "=1+1"'] * 20})


def read_arrays(path: Path) -> object:
    return arrays.read_npz(path, ["a", "b"], "make it anew")


def read_table(path: Path) -> object:
    return tables.read_csv(path, TYPES, "make it anew")


def damaged(content: bytes, random_: random.Random) -> bytes:
    """A file cut, with other bytes, without some of its bytes, or of other bytes altogether."""
    place, length = random_.randrange(len(content)), random_.randrange(1, 200)
    return random_.choice(
        [
            content[:place],
            content[:place] + random_.randbytes(length) + content[place + length :],
            content[:place] + content[place + length :],
            random_.randbytes(length),
            b"",
        ]
    )


@pytest.mark.parametrize("mapped_from_bytes", [0, arrays.MAPPED_FROM_BYTES])
@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("a.npz", lambda path: arrays.write_npz(path, {"a": np.arange(300), "b": np.eye(9)}), read_arrays),
        (
            "b.npz",
            lambda path: arrays.write_npz(path, {"a": np.arange(300), "b": np.eye(9)}, compress=True),
            read_arrays,
        ),
        ("c.csv", lambda path: tables.write_csv(TABLE, path), read_table),
    ],
)
def test_damage_of_any_kind_is_one_sentence_that_names_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    write: Callable[[Path], None],
    read: Callable[[Path], object],
    mapped_from_bytes: int,
) -> None:
    monkeypatch.setattr(arrays, "MAPPED_FROM_BYTES", mapped_from_bytes)
    path, random_ = tmp_path / name, random.Random(0)
    write(path)
    read(path)
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        path.write_bytes(damaged(whole, random_))
        try:
            read(path)
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            assert str(error).endswith("; make it anew")
            assert "\n" not in str(error)
    assert refused > 50


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    tables.write_csv(TABLE, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(tables.read_csv(tmp_path / "t.csv", TYPES), TABLE, check_dtype=False)


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    tables.write_csv(TABLE.drop(columns="share"), tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"the columns \['share'\] are missing"):
        tables.read_csv(tmp_path / "t.csv", TYPES)


def test_an_array_that_is_missing_is_named(tmp_path: Path) -> None:
    arrays.write_npz(tmp_path / "a.npz", {"a": np.arange(3)})
    with pytest.raises(DataError, match="without one of"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["007", "1e5", "true", "nan", "NA"])
def test_names_of_classes_are_text_whatever_they_look_like(tmp_path: Path, name: str) -> None:
    tables.write_csv(pd.DataFrame({"class_name": [name, name], "n": [1, 2]}), tmp_path / "t.csv")
    assert tables.read_csv(tmp_path / "t.csv")["class_name"].tolist() == [name, name]


@pytest.mark.parametrize(
    "array", [np.arange(600).reshape(100, 6), np.eye(50, dtype=np.float32).T, np.arange(9)]
)
def test_a_large_array_is_mapped_and_is_the_one_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: np.ndarray
) -> None:
    monkeypatch.setattr(arrays, "MAPPED_FROM_BYTES", 0)
    monkeypatch.setattr(arrays, "BLOCK_ELEMENTS", 14)
    path = tmp_path / "a.npz"
    arrays.write_npz(path, {"first": np.arange(5), "a": array, "last": np.arange(3)})
    first, read = arrays.read_npz(path, ["first", "a"])
    base = read
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    assert first.tolist() == [0, 1, 2, 3, 4]
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)
    arrays.write_npz(path, {"a": array * 0})  # a new file; the mapped one stays as it is
    blocks = [(rows, block.copy()) for rows, block in arrays.blocks(read)]
    assert max(block.size for _, block in blocks) <= max(14, array[:1].size)
    assert [rows.start for rows, _ in blocks] == [0, *(rows.stop for rows, _ in blocks[:-1])]
    assert np.array_equal(np.concatenate([block for _, block in blocks]), array)
