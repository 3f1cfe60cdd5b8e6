"""The table of a comparison for a paper, as LaTeX and CSV: each group beside the first one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common.latex import write_table


def write(result: Mapping[str, Any], out: Path) -> None:
    """Write comparisons.tex and comparisons.csv into a folder.

    Args:
        result: as `compare_runs` returns it.
    """
    table = rows(result)
    write_table(_in_words(table), table, out / "comparisons")


def rows(result: Mapping[str, Any]) -> pd.DataFrame:
    """A row a comparison of b with a.

    Columns: a, b (groups, or runs where all are of one group); top1_a, top1_b (means over their runs); runs_a, runs_b;
    difference (b - a) with its 95 % interval low and high, and what that is over (interval_over: seeds and images,
    where both have several runs); p, and p_adjusted (Holm); test, that of p. Interval and p may be missing.
    """
    groups = {group["name"]: group for group in result["groups"]}
    top1 = {name: (group["top1_mean"], len(group["runs"])) for name, group in groups.items()}
    for group in groups.values():
        for run, value in zip(group["runs"], group["top1"], strict=True):
            top1.setdefault(run, (value, 1))
    found = []
    for one in result["comparisons"]:
        seeds = "low_over_seeds" in one
        found.append(
            {
                "a": one["a"],
                "b": one["b"],
                "top1_a": top1[one["a"]][0],
                "top1_b": top1[one["b"]][0],
                "runs_a": top1[one["a"]][1],
                "runs_b": top1[one["b"]][1],
                "difference": one["difference"],
                "low": one["low_over_seeds" if seeds else "low"],
                "high": one["high_over_seeds" if seeds else "high"],
                "interval_over": one["interval_over"],
                "p": one["p"],
                "p_adjusted": one["p_adjusted"],
                "test": one["test"],
            }
        )
    return pd.DataFrame(found)


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "": row["b"],
                "compared with": row["a"],
                "top-1 (%)": f"{100 * row['top1_b']:.1f}",
                "theirs (%)": f"{100 * row['top1_a']:.1f}",
                "difference (points)": f"{100 * row['difference']:+.1f}",
                "95 % interval": "none"
                if pd.isna(row["low"])
                else f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
                "p": "none" if pd.isna(row["p"]) else f"{row['p']:.2g}",
                "p (Holm)": "none" if pd.isna(row["p_adjusted"]) else f"{row['p_adjusted']:.2g}",
            }
            for row in table.to_dict("records")
        ]
    )
