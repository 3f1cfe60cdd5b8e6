"""Groups: whole ones are held out, about the share that is asked for, and each class keeps an image for training."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.common.errors import DataError
from pipeline.data import groups, splits
from pipeline.data.sample_table import EITHER


def table(*, groups_a_class: int, size: int = 4, classes: int = 3, official: str = EITHER) -> pd.DataFrame:
    """Classes of groups of one size."""
    rows = [
        (label, f"{label}-{number}")
        for label in range(classes)
        for number in range(groups_a_class)
        for _ in range(size)
    ]
    samples = pd.DataFrame(rows, columns=["label", "group"])
    names = {"path": samples.index.astype(str), "class_name": samples["label"].astype(str)}
    return samples.assign(id=samples.index, official=official, **names)


def draw(samples: pd.DataFrame, seed: int = 0, **keys: object) -> pd.DataFrame:
    given = {"val_fraction": 0.1, "folds": None, "fold": 0, "seed": seed, "test_fraction": 0.2, **keys}
    return splits.draw(samples, **given)  # type: ignore[arg-type]


def whole(drawn: pd.DataFrame) -> bool:
    return bool((drawn[drawn["group"] != ""].groupby("group")["split"].nunique() == 1).all())


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_and_each_class_has_about_its_share(seed: int) -> None:
    drawn = draw(table(groups_a_class=20), seed)
    assert whole(drawn)
    counts = drawn.groupby(["label", "split"]).size().unstack()
    assert counts["test"].tolist() == [16] * 3  # 4 of 20 groups
    assert counts["val"].tolist() == [8] * 3  # 2 of the 16 that are left: 6.4 images are asked for


def test_the_test_is_the_same_for_every_seed_and_validation_is_not() -> None:
    one, other = draw(table(groups_a_class=20), 0), draw(table(groups_a_class=20), 1)
    same = {
        split: one.loc[one["split"] == split, "id"].tolist()
        == other.loc[other["split"] == split, "id"].tolist()
        for split in ("test", "val")
    }
    assert same == {"test": True, "val": False}


class Counted(np.ndarray):  # type: ignore[type-arg]
    """An array that counts its sums."""

    sums = 0

    def sum(self, *args: Any, **options: Any) -> Any:
        Counted.sums += 1
        return np.asarray(self).sum(*args, **options)


MANY = pd.Series([f"group {n % 25}" for n in range(100)])
MANY_CLASSES = {label: np.arange(label, 100, 10) for label in range(10)}


def test_folds_of_many_groups_add_up_the_table_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum over groups x classes for each group would take hours where there are thousands of both."""
    count = groups._counts

    def counted(*args: Any) -> Any:
        names, counts = count(*args)
        return names, counts.view(Counted)

    monkeypatch.setattr(groups, "_counts", counted)
    monkeypatch.setattr(Counted, "sums", 0)
    groups.fold(MANY_CLASSES, MANY, 5, 0, np.random.default_rng(0))
    assert Counted.sums < 5


def test_shares_of_many_groups_order_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    orders, argsort = [], np.argsort
    monkeypatch.setattr(np, "argsort", lambda *given, **keys: (orders.append(1), argsort(*given, **keys))[1])
    groups.hold_out(MANY_CLASSES, MANY, 0.2, np.random.default_rng(0))
    assert len(orders) == 1


def test_folds_of_groups_cover_all_images_once_and_are_of_one_size() -> None:
    samples = table(groups_a_class=10, official="train")
    held = [draw(samples, folds=5, fold=fold) for fold in range(5)]
    assert all(map(whole, held))
    ids = [drawn.loc[drawn["split"] == "val", "id"].tolist() for drawn in held]
    assert sorted(image for each in ids for image in each) == samples["id"].tolist()
    assert [len(each) for each in ids] == [24] * 5


def folds_of(samples: pd.DataFrame, folds: int) -> list[pd.DataFrame]:
    """Each with classes by splits: the numbers of images."""
    held = [draw(samples, folds=folds, fold=fold) for fold in range(folds)]
    assert all(map(whole, held))
    return [drawn.groupby(["label", "split"]).size().unstack(fill_value=0) for drawn in held]


def test_no_fold_takes_the_only_group_of_a_class_out_of_training() -> None:
    samples = table(groups_a_class=6)
    samples = samples[(samples["label"] != 0) | samples["group"].isin(["0-0", "0-1"])]
    for counts in folds_of(samples, folds=2):
        assert counts["train"].tolist() == [4, *counts["train"][1:]]  # the test has the other one
        assert counts["test"][0] == 4 and counts["val"][0] == 0
        assert (counts.loc[1:, ["train", "val"]] > 0).all(axis=None)


@pytest.mark.parametrize("seed", range(20))
def test_no_fold_takes_all_groups_of_a_class_out_of_training(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = 60
    samples = table(groups_a_class=1, size=size, classes=4, official="train")
    samples["group"] = random.integers(0, 6, len(samples)).astype(str)
    samples = samples[(samples["label"] != 0) | samples["group"].isin(["0", "1"])]
    samples = samples.groupby(["label", "group"]).head(3 + seed)
    for folds in (2, 3):
        for counts in folds_of(samples, folds):
            assert (counts["train"] > 0).all()


def test_groups_of_several_classes_and_images_without_one() -> None:
    samples = table(groups_a_class=10, classes=4)
    samples["group"] = samples["group"].str.replace(
        r"^[01]-", "site ", regex=True
    )  # classes 0 and 1 meet at 10 sites
    samples.loc[samples["label"] == 3, "group"] = ""
    drawn = draw(samples)
    assert whole(drawn)
    counts = drawn.groupby(["label", "split"]).size().unstack()
    assert counts["test"].tolist() == [8] * 4
    assert (counts > 0).all(axis=None)


def test_a_class_of_two_groups_has_one_for_the_test_and_none_for_validation() -> None:
    counts = draw(table(groups_a_class=2)).groupby(["label", "split"]).size().unstack()
    assert counts.to_dict("list") == {"test": [4] * 3, "train": [4] * 3}


def test_one_group_of_many_images_is_not_taken_for_a_small_share() -> None:
    samples = table(groups_a_class=6, size=1)
    large = samples.assign(group=samples["label"].astype(str) + "-large", id=samples["id"] + 100)
    drawn = draw(pd.concat([samples, large], ignore_index=True), val_fraction=0.0)
    assert not drawn.loc[drawn["split"] == "test", "group"].str.endswith("large").any()
    assert (drawn["split"] == "test").sum() == 6  # 2 of 12 a class: 2.4 are asked for


def test_what_parts_groups_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"data.val_images: single images would part groups; set data.val_fraction"
    ):
        draw(table(groups_a_class=10), sizes=splits.Sizes(val=6))
    joined = table(groups_a_class=2).assign(group="0")
    joined.loc[joined["label"] == 0, "group"] = ["0", "1"] * 4
    with pytest.raises(
        DataError, match=r"data.test_fraction: no test image of 1, 2 \(2 in all\) can be drawn"
    ):
        draw(joined)


def test_a_table_without_groups_has_none() -> None:
    samples = table(groups_a_class=2)
    assert groups.of(samples.drop(columns="group")) is None
    assert groups.of(samples.assign(group="")) is None
    group = groups.of(samples)
    assert group is not None
    assert np.array_equal(group.index, samples["id"])
