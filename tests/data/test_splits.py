"""Validation is a function of (seed, class, ids), drawn from the official training images alone."""

from typing import Any

import pandas as pd
import pytest

from pipeline.common.errors import DataError
from pipeline.config.load import load_config
from pipeline.data import prepare, sample_table, splits
from pipeline.data.splits import Sizes
from pipeline.data.table_name import table_name


def listed(*train: int, test: int = 11) -> pd.DataFrame:
    """A table of classes with so many official training images each, and `test` others."""
    labels = [label for label, count in enumerate(train) for _ in range(count + test)]
    official = [kind for count in train for kind in ["train"] * count + ["test"] * test]
    names = [f"bird {label}" for label in labels]
    ids = range(1, len(labels) + 1)
    return pd.DataFrame({"id": ids, "label": labels, "class_name": names, "official": official})


def draw(table: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    how: dict[str, Any] = {"val_fraction": 0.1, "folds": None, "fold": 0, "seed": 0}
    return splits.draw(table, **(how | changes))


def val_ids(table: pd.DataFrame) -> set[int]:
    return set(table.loc[table["split"] == "val", "id"])


@pytest.mark.parametrize("how", [{}, {"val_fraction": 0.0}, {"val_fraction": 0.9}, {"folds": 3, "fold": 2}])
def test_the_official_test_images_stay_untouched_and_nothing_else_joins_them(how: dict[str, Any]) -> None:
    drawn = draw(listed(30, 29, 30), **how)
    assert ((drawn["split"] == "test") == (drawn["official"] == "test")).all()
    assert set(drawn["split"]) <= {"train", "val", "test"}


def test_every_class_gives_its_rounded_share() -> None:
    drawn = draw(listed(30, 29, 24, 26, 4, 2), val_fraction=0.1)
    counts = drawn[drawn["split"] == "val"].groupby("label").size()
    assert counts.to_dict() == {0: 3, 1: 3, 2: 2, 3: 3, 4: 1, 5: 1}


def test_a_large_share_leaves_one_image_to_train() -> None:
    drawn = draw(listed(30, 4), val_fraction=0.99)
    assert drawn["split"].value_counts().to_dict() == {"val": 32, "test": 22, "train": 2}


def test_without_a_share_nothing_validates() -> None:
    drawn = draw(listed(30, 1), val_fraction=0.0)
    assert drawn["split"].value_counts().to_dict() == {"train": 31, "test": 22}


def test_the_same_seed_draws_the_same_images_and_another_one_others() -> None:
    table = listed(*[30] * 5)
    assert val_ids(draw(table)) == val_ids(draw(table))
    drawn = {seed: val_ids(draw(table, seed=seed)) for seed in (0, 1, 2)}
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_seeds_can_share_one_validation_split() -> None:
    """data.split_seed: the table of seed 5 is that of seed 0 then, and has its name."""
    table = listed(*[30] * 5)
    given = [[], ["seed=5"], ["seed=5", "data.split_seed=0"], ["seed=0", "data.split_seed=5"]]
    configs = [load_config(None, overrides) for overrides in given]
    zero, five, fixed, moved = (val_ids(prepare.draw_splits(table, config)) for config in configs)
    assert zero == fixed != five == moved
    assert [table_name(config) for config in configs[:3]] == [
        "samples-val0.1-seed0.csv",
        "samples-val0.1-seed5.csv",
        "samples-val0.1-seed0.csv",
    ]


def test_classes_are_not_all_cut_at_the_same_places() -> None:
    table = listed(*[30] * 5)
    places = {
        frozenset((id_ - 1) % 41 for id_ in val_ids(draw(table[table["label"] == c]))) for c in range(5)
    }
    assert len(places) == 5


def test_the_order_of_the_rows_does_not_matter_and_is_kept() -> None:
    table = listed(30, 29, 30)
    mixed = table.sample(frac=1, random_state=3)
    drawn = draw(mixed)
    assert drawn["id"].tolist() == mixed["id"].tolist()
    assert val_ids(drawn) == val_ids(draw(table))


def test_a_class_does_not_depend_on_the_others() -> None:
    table = listed(30, 29, 30)
    alone = table[table["label"] == 1]
    assert val_ids(draw(alone)) == val_ids(draw(table)) & set(alone["id"])


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_are_disjoint_stratified_and_together_all_of_train(folds: int) -> None:
    table = listed(30, 29, 7)
    drawn = [draw(table, folds=folds, fold=fold) for fold in range(folds)]
    held_out = [id_ for fold in drawn for id_ in val_ids(fold)]
    assert sorted(held_out) == table.loc[table["official"] == "train", "id"].tolist()
    for fold in drawn:
        counts = fold[fold["split"] == "val"].groupby("label").size()
        assert all(n // folds <= counts[label] <= -(-n // folds) for label, n in enumerate((30, 29, 7)))


def test_the_table_given_is_not_changed() -> None:
    table = listed(5)
    before = table.copy()
    draw(table)
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize(
    "how",
    [{}, {"val_fraction": 0.9}, {"folds": 2}, {"folds": 3, "fold": 2}, {"sizes": Sizes(val=8)}],
    ids=["share", "large share", "folds", "last fold", "size"],
)
def test_the_only_training_image_of_a_class_stays_in_training(how: dict[str, Any]) -> None:
    drawn = draw(listed(60, 6, 2, 1, 0), **how)
    counts = drawn.groupby(["split", "label"]).size()
    assert counts["train"].loc[3] == 1
    assert {0, 1, 2, 3} == set(counts["train"].index)
    assert 3 not in counts["val"].index
    assert counts["test"].loc[4] == 11
    assert sample_table.classes_without(drawn, "train") == ["bird 4"]
    assert set(sample_table.classes_without(drawn, "val")) >= {"bird 3", "bird 4"}


def test_a_size_of_validation_leaves_each_class_an_image_to_train() -> None:
    table = listed(5, 3, 1)
    drawn = draw(table, sizes=Sizes(val=6))
    assert drawn[drawn["split"] == "train"].groupby("label").size().to_dict() == {0: 1, 1: 1, 2: 1}
    with pytest.raises(DataError, match="data.val_images: 7 are asked for, and 6 images are left for it"):
        draw(table, sizes=Sizes(val=7))


def test_a_size_of_validation_takes_the_same_images_as_ever() -> None:
    drawn = draw(listed(30, 20, 10), sizes=Sizes(val=6))
    assert drawn[drawn["split"] == "val"].groupby("label").size().to_dict() == {0: 3, 1: 2, 2: 1}


def test_a_small_test_set_that_would_drop_a_class_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"data\.test_images: 1 leave no image at all of bird 1, bird 2 \(2 in all\)"
    ):
        draw(listed(5, 0, 0), sizes=Sizes(test=1))


def test_a_size_is_shared_by_the_sizes_of_the_classes_and_no_class_is_left_without() -> None:
    table = listed(60, 30, 9, 1, test=20)
    drawn = draw(table, val_fraction=0.0, sizes=Sizes(train=40, test=8))
    counts = drawn.groupby(["split", "label"]).size()
    assert counts["train"].to_dict() == {0: 23, 1: 12, 2: 4, 3: 1}
    assert counts["test"].to_dict() == {0: 2, 1: 2, 2: 2, 3: 2}
    assert drawn["id"].is_monotonic_increasing


def test_sizes_take_nothing_from_the_other_splits() -> None:
    table = listed(30, 30)
    all_of_them, some = draw(table, seed=3), draw(table, seed=3, sizes=Sizes(train=10, test=4))
    assert val_ids(some) == val_ids(all_of_them)
    for split in ("train", "test"):
        ids = [set(one.loc[one["split"] == split, "id"]) for one in (some, all_of_them)]
        assert ids[0] < ids[1]
