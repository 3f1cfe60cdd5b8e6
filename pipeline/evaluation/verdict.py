"""The result of a comparison: a sentence for each pair of groups, and one screen of the terminal."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.common import console
from pipeline.evaluation import registered_comparison

ALPHA = 0.05
SHOWN = 5


def sentence(comparison: Mapping[str, Any], images: int, *, seeds_only: bool = False) -> str:
    """One or two sentences: which group is better, by how much, and whether that is more than noise.

    Args:
        comparison: of two groups, as `pipeline.evaluation.compare` makes it, with `p_adjusted`. Where it has an interval
            over seeds and images, that is the one named.
        images: number of images that both predicted.
        seeds_only: both are runs of one configuration.
    """
    points = 100 * comparison["difference"]
    ahead, behind = (comparison[side] for side in ("ab" if points < 0 else "ba"))
    doubt = _doubt(comparison)
    if points == 0:
        return f"{comparison['b']} and {comparison['a']} have the same accuracy ({doubt}): no difference to speak of."
    statement = f"{ahead} is {abs(points):.1f} points better than {behind} ({doubt})"
    over = comparison["interval_over"]
    noise = f"the noise of {over.replace('images', f'{images:,} images')}"
    if comparison["p_adjusted"] is None:
        reason = "one image says" if images < 2 else "all images and runs say the same, which says"
        return f"{statement}: whether that is more than noise cannot be tested; {reason} nothing of others."
    if comparison["p_adjusted"] >= ALPHA:
        return f"{statement}: not more than {noise}."
    if over == "seeds and images":
        return f"{statement}: more than {noise}."
    if seeds_only:
        caution = "They are runs of one configuration: this is what a seed can do, not a better recipe."
    else:
        caution = "With one run of either it may still be the seed: only several seeds of both can tell."
    return f"{statement}: more than {noise}. {caution}"


def _doubt(comparison: Mapping[str, Any]) -> str:
    """The interval, in points of what is ahead, and the p-value, adjusted where there are several comparisons."""
    seeds = "low_over_seeds" in comparison
    low, high = (comparison[f"{end}_over_seeds" if seeds else end] for end in ("low", "high"))
    p = comparison["p_adjusted"]
    words = _p(p) + (" adjusted by Holm" if p is not None and p != comparison["p"] else "")
    if low is None or high is None:
        return f"no interval, {words}"
    if comparison["difference"] < 0:
        low, high = -high, -low
    over = f" over {comparison['interval_over']}" if seeds else ""
    return f"95 % interval{over} {100 * low:+.1f} to {100 * high:+.1f} points, {words}"


def show(result: Mapping[str, Any], classes: pd.DataFrame) -> None:
    """Print the groups, their differences, and the classes that gain and lose most."""
    console.show_table(
        f"top-1 on {result['split']}, {result['n']:,} images",
        ["runs of one configuration", "runs", "mean", "sd"],
        [
            [group["name"], len(group["runs"]), group["top1_mean"], _sd(group["top1_sd"])]
            for group in result["groups"]
        ],
    )
    for comparison in result["comparisons"]:
        rows = classes[(classes["a"] == comparison["a"]) & (classes["b"] == comparison["b"])]
        rows = rows[rows["difference"] != 0]
        ends = pd.concat([rows.head(SHOWN), rows.tail(SHOWN)]).drop_duplicates()
        if len(ends):
            console.show_table(
                f"classes furthest apart: a {comparison['a']}, b {comparison['b']}",
                ["class", "images", "accuracy a", "accuracy b", "b - a"],
                ends[["class_name", "n", "accuracy_a", "accuracy_b", "difference"]].itertuples(index=False),
            )
        console.say(
            f"images better in b {comparison['images_better_in_b']}, in a {comparison['images_better_in_a']}; "
            f"classes better in b {comparison['classes_better_in_b']}, in a {comparison['classes_better_in_a']}; "
            f"{comparison['test']}: {_p(comparison['p'])}"
        )
    if result["otherwise"]:
        console.show_table(
            "the same predictions, judged otherwise; b - a with its 95 % interval",
            ["measure", "a", "b", "mean a", "mean b", "b - a", "interval", "over"],
            [
                [
                    *(row[name] for name in ("measure", "a", "b", "mean_a", "mean_b", "difference")),
                    "none" if row["low"] is None else f"{row['low']:+.4f} .. {row['high']:+.4f}",
                    row["interval_over"],
                ]
                for row in result["otherwise"]
            ],
        )
    console.say(registered_comparison.in_words(result["protocol"]))
    for comparison in result["comparisons"]:
        console.say(comparison["verdict"])


def _p(value: float | None) -> str:
    if value is None:
        return "no p-value"
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


def _sd(value: float | None) -> str:
    return "one run" if value is None else f"{value:.4f}"
