import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import prepare
from tests.helpers import tiny


def rows(tmp: Path, *overrides: str) -> "np.typing.NDArray[np.int64]":
    config = tiny.config(tmp, *overrides)
    return prepare.load(config).training_rows(config)


def test_a_subset_takes_its_share_of_each_class(birds: Path, tmp_path: Path) -> None:
    config = tiny.config(tmp_path)
    data = prepare.load(config)
    whole = rows(tmp_path)
    assert whole.tolist() == data.rows("train")
    half = rows(tmp_path, "train.subset=0.5")
    labels = data.samples["label"].to_numpy()
    assert np.bincount(labels[whole]).tolist() == [6] * tiny.SPECIES
    assert np.bincount(labels[half]).tolist() == [3] * tiny.SPECIES
    assert set(half) < set(whole)
    assert half.tolist() == sorted(half)
    assert np.bincount(labels[rows(tmp_path, "train.subset=0.01")]).tolist() == [1] * tiny.SPECIES


def test_a_smaller_subset_is_part_of_a_larger_one_and_each_seed_has_its_own(
    birds: Path, tmp_path: Path
) -> None:
    sets = [set(rows(tmp_path, f"train.subset={share}")) for share in (0.2, 0.4, 0.7, 1.0)]
    assert sets[0] < sets[1] < sets[2] < sets[3]
    overrides = ("data.val_fraction=0", "train.subset=0.4", tiny.own_data(tmp_path))
    for seed in ("seed=0", "seed=1"):
        assert tiny.do("data", tmp_path, *overrides, seed) == 0
    assert set(rows(tmp_path, *overrides)) != set(rows(tmp_path, *overrides, "seed=1"))
    assert set(rows(tmp_path, *overrides)) == set(rows(tmp_path, *overrides))


def test_a_run_on_a_subset_learns_from_it_alone_and_validates_on_all(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("train.subset=0.5", "train.epochs=2")
    assert tiny.do("schedule", tmp_path, *overrides) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6
    assert tiny.do("train", tmp_path, *overrides) == 0
    printed = capsys.readouterr()
    assert "18 images to train on, 6 to validate" in printed.err
    assert json.loads(printed.out)["step"] == 6  # 18 images in batches of at most 8, twice


def test_a_run_does_not_go_on_with_another_subset(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, "train.subset=0.5", "train.max_steps=1") == 0
    assert tiny.do("train", tmp_path) == 2
    assert "train.subset 0.5 -> 1.0" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["0", "1.5", "-0.1"])
def test_a_share_is_above_0_and_at_most_1(
    tmp_path: Path, share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.do("train", tmp_path, f"train.subset={share}") == 2
    assert "train.subset" in capsys.readouterr().err
