"""Mistakes by their distance in the hierarchy, against values worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from pipeline.data.taxonomy import Taxonomy
from pipeline.evaluation import mistake_severity

BIRDS = Taxonomy(
    ("arctic tern", "common tern", "ivory gull", "crow"),
    {
        "genus": ("Sterna", "Sterna", "Pagophila", "Corvus"),
        "family": ("Laridae", "Laridae", "Laridae", "Corvidae"),
    },
)


def predictions(*pairs: tuple[int, int]) -> pd.DataFrame:
    """A row for each true and predicted label."""
    return pd.DataFrame(pairs, columns=["label", "predicted"])


# right, in the genus, in the family (twice), in nothing
FIVE = predictions((3, 3), (0, 1), (1, 2), (2, 0), (3, 2))


def test_height_is_that_of_the_lowest_node_above_both_classes() -> None:
    assert mistake_severity.heights(FIVE, BIRDS).tolist() == [0, 1, 2, 2, 3]


def test_means_over_mistakes_and_over_images() -> None:
    numbers = mistake_severity.summary(FIVE, BIRDS)
    assert numbers["height"] == pytest.approx(8 / 4)
    assert numbers["distance"] == pytest.approx(8 / 5)
    assert 1 <= numbers["height_low"] <= 2 <= numbers["height_high"] <= 3
    assert 0 <= numbers["distance_low"] < 1.6 < numbers["distance_high"] <= 3


def test_without_a_mistake_there_is_no_height() -> None:
    numbers = mistake_severity.summary(predictions((0, 0), (2, 2)), BIRDS)
    assert numbers["height"] is None
    assert "height_low" not in numbers
    assert numbers["distance"] == numbers["distance_high"] == 0


def test_interval_of_many_images_is_that_of_the_normal_distribution() -> None:
    """Heights 1 and 3 alternate: their mean is 2, with a standard error of 1 / sqrt(n)."""
    n = 1_000
    numbers = mistake_severity.summary(predictions(*[(0, 1), (3, 2)] * (n // 2)), BIRDS)
    assert numbers["height"] == 2
    half = 1.96 / np.sqrt(n)
    assert numbers["height_low"] == pytest.approx(2 - half, abs=0.1 * half)
    assert numbers["height_high"] == pytest.approx(2 + half, abs=0.1 * half)


def test_accuracy_of_each_rank() -> None:
    table = mistake_severity.by_rank(FIVE, BIRDS).set_index("rank")
    assert table["nodes"].to_dict() == {"class": 4, "genus": 3, "family": 2}
    assert table["correct"].to_dict() == {"class": 1, "genus": 2, "family": 4}
    assert table["mistakes"].to_dict() == {"class": 0, "genus": 1, "family": 2}
    assert table.loc["family", "accuracy"] == 0.8
    # Wilson's interval of 4 of 5, by hand: (0.8 + z2/10 +- z sqrt(0.032 + z2/100)) / (1 + z2/5), z = 1.96
    assert table.loc["family", "accuracy_low"] == pytest.approx(0.3755, abs=1e-3)
    assert table.loc["family", "accuracy_high"] == pytest.approx(0.9638, abs=1e-3)


def test_mistakes_across_families_are_counted_by_pair() -> None:
    table = mistake_severity.across(pd.concat([FIVE, predictions((3, 0), (0, 3))]), BIRDS, "family")
    assert table.to_dict("list") == {
        "true_node": ["Corvidae", "Laridae"],
        "predicted_node": ["Laridae", "Corvidae"],
        "images": [2, 1],
    }


def test_summary_has_the_ranks_with_the_pairs_that_are_taken_for_each_other() -> None:
    ranks = mistake_severity.summary(FIVE, BIRDS)["ranks"]
    assert [row["rank"] for row in ranks] == ["class", "genus", "family"]
    assert ranks[2]["across"] == [{"true_node": "Corvidae", "predicted_node": "Laridae", "images": 1}]
    assert sum(pair["images"] for pair in ranks[1]["across"]) == 3
