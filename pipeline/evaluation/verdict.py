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
    over_seeds = "low_over_seeds" in comparison
    bounds = ("low_over_seeds", "high_over_seeds") if over_seeds else ("low", "high")
    points, low, high = (100 * comparison[name] for name in ("difference", *bounds))
    if points < 0:
        points, low, high = -points, -high, -low
        ahead, behind = comparison["a"], comparison["b"]
    else:
        ahead, behind = comparison["b"], comparison["a"]
    over = " over seeds and images" if over_seeds else ""
    doubt = f"95 % interval{over} {low:+.1f} to {high:+.1f} points, {_p(comparison['p_adjusted'])}"
    if points == 0:
        return f"{comparison['b']} and {comparison['a']} have the same accuracy ({doubt}): no difference to speak of."
    statement = f"{ahead} is {points:.1f} points better than {behind} ({doubt})"
    if comparison["p_adjusted"] >= ALPHA:
        source = "images"
        if comparison["p_seeds"] is not None:
            only_seeds = comparison["p_images"] < ALPHA <= comparison["p_seeds"]
            source = "seeds" if only_seeds else "images and seeds"
        return f"{statement}: not more than the noise of {_noise(source, images)}."
    if comparison["p_seeds"] is not None:
        return f"{statement}: more than the noise of {_noise('images and seeds', images)}."
    if seeds_only:
        caution = "They are runs of one configuration: this is what a seed can do, not a better recipe."
    else:
        caution = "With one run of either it may still be the seed: only several seeds of both can tell."
    return f"{statement}: more than the noise of {_noise('images', images)}. {caution}"


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
            f"{comparison['test']}: {_p(comparison['p_images'])}"
            + (
                f"; {comparison['test_over_seeds']}: {_p(comparison['p_seeds'])}"
                if comparison["p_seeds"] is not None
                else ""
            )
        )
    if result["otherwise"]:
        console.show_table(
            "the same predictions, judged otherwise; b - a with its 95 % interval over images",
            ["measure", "a", "b", "mean a", "mean b", "b - a", "interval"],
            [
                [
                    *(row[name] for name in ("measure", "a", "b", "mean_a", "mean_b", "difference")),
                    f"{row['low']:+.4f} .. {row['high']:+.4f}",
                ]
                for row in result["otherwise"]
            ],
        )
    console.say(registered_comparison.in_words(result["protocol"]))
    for comparison in result["comparisons"]:
        console.say(comparison["verdict"])


def _noise(source: str, images: int) -> str:
    return source.replace("images", f"{images:,} images")


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


def _sd(value: float | None) -> str:
    return "one run" if value is None else f"{value:.4f}"
