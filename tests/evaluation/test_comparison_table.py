"""The table of a comparison, for groups of several seeds and for runs of one group."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.evaluation import comparison_table


def group(name: str, **top1: float) -> dict[str, Any]:
    values = list(top1.values())
    return {"name": name, "runs": list(top1), "top1": values, "top1_mean": sum(values) / len(values)}


def comparison(a: str, b: str, **more: Any) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "difference": 0.05,
        "low": 0.02,
        "high": 0.08,
        "p": 0.004,
        "p_adjusted": 0.008,
        "test": "a test",
        "interval_over": "images",
    } | more


def test_groups_have_their_means_and_the_interval_over_seeds(tmp_path: Path) -> None:
    plain, strong = group("plain", a0=0.75, a1=0.85), group("strong_2", b0=0.8, b1=0.9)
    over_seeds = {
        "low_over_seeds": -0.01,
        "high_over_seeds": 0.11,
        "interval_over": "seeds and images",
    }
    result = {"groups": [plain, strong], "comparisons": [comparison("plain", "strong_2", **over_seeds)]}
    (row,) = comparison_table.rows(result).to_dict("records")
    assert (row["top1_a"], row["top1_b"], row["runs_a"], row["runs_b"]) == (0.8, 0.8500000000000001, 2, 2)
    assert (row["low"], row["high"], row["interval_over"]) == (-0.01, 0.11, "seeds and images")
    comparison_table.write(result, tmp_path)
    assert (
        r"strong\_2 & plain & 85.0 & 80.0 & +5.0 & -1.0 to +11.0 & 0.004 & 0.008 \\"
        in (tmp_path / "comparisons.tex").read_text().splitlines()
    )
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "comparisons.csv"), comparison_table.rows(result), check_dtype=False
    )


def test_runs_of_one_group_stand_by_their_own_names() -> None:
    result = {"groups": [group("one + two", one=0.7, two=0.9)], "comparisons": [comparison("one", "two")]}
    (row,) = comparison_table.rows(result).to_dict("records")
    assert (row["top1_a"], row["top1_b"], row["runs_a"], row["runs_b"]) == (0.7, 0.9, 1, 1)
    assert (row["low"], row["interval_over"]) == (0.02, "images")


def test_what_cannot_be_tested_has_no_numbers(tmp_path: Path) -> None:
    known, unknown = (
        comparison("one", "two"),
        comparison("one", "three", p=None, p_adjusted=None, low=None, high=None),
    )
    result = {"groups": [group("all", one=0.7, two=0.9, three=1.0)], "comparisons": [known, unknown]}
    comparison_table.write(result, tmp_path)
    text = (tmp_path / "comparisons.tex").read_text()
    assert "none & none & none" in text and "nan" not in text
    assert "nan" not in (tmp_path / "comparisons.csv").read_text().lower()
