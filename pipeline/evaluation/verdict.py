"""A comparison in words and on one screen of the terminal."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.common import console

ALPHA = 0.05
SHOWN = 5


def words(found: Mapping[str, Any], images: int, *, seeds_only: bool = False) -> str:
    """Whether a difference is more than noise, in a sentence or two.

    Args:
        found: a comparison of `pipeline.evaluation.compare`, with `p_adjusted`.
        images: how many images both predicted.
        seeds_only: both are runs of one configuration.
    """
    points, low, high = (100 * found[name] for name in ("difference", "low", "high"))
    if points < 0:
        points, low, high = -points, -high, -low
        ahead, behind = found["a"], found["b"]
    else:
        ahead, behind = found["b"], found["a"]
    far = f"95 % interval {low:+.1f} to {high:+.1f} points, {_p(found['p_adjusted'])}"
    if points == 0:
        return f"{found['b']} and {found['a']} have the same accuracy ({far}): no difference to speak of."
    apart = f"{ahead} is {points:.1f} points better than {behind} ({far})"
    if found["p_adjusted"] >= ALPHA:
        blame = "images"
        if found["p_seeds"] is not None:
            only_seeds = found["p_images"] < ALPHA <= found["p_seeds"]
            blame = "seeds" if only_seeds else "images and seeds"
        return f"{apart}: not more than the noise of {_noise(blame, images)}."
    if found["p_seeds"] is not None:
        return f"{apart}: more than the noise of {_noise('images and seeds', images)}."
    if seeds_only:
        caution = "They are runs of one configuration: this is what a seed can do, not a better recipe."
    else:
        caution = "With one run of either it may still be the seed: only several seeds of both can tell."
    return f"{apart}: more than the noise of {_noise('images', images)}. {caution}"


def show(result: Mapping[str, Any], classes: pd.DataFrame) -> None:
    """Print the groups, what separates them, and the classes that gain and lose most."""
    console.show_table(
        f"top-1 on {result['split']}, {result['n']:,} images",
        ["runs of one configuration", "runs", "mean", "sd"],
        [
            [group["name"], len(group["runs"]), group["top1_mean"], _sd(group["top1_sd"])]
            for group in result["groups"]
        ],
    )
    for found in result["comparisons"]:
        rows = classes[(classes["a"] == found["a"]) & (classes["b"] == found["b"])]
        rows = rows[rows["difference"] != 0]
        ends = pd.concat([rows.head(SHOWN), rows.tail(SHOWN)]).drop_duplicates()
        if len(ends):
            console.show_table(
                f"classes furthest apart: a {found['a']}, b {found['b']}",
                ["class", "images", "accuracy a", "accuracy b", "b - a"],
                ends[["class_name", "n", "accuracy_a", "accuracy_b", "difference"]].itertuples(index=False),
            )
        console.say(
            f"images better in b {found['images_better_in_b']}, in a {found['images_better_in_a']}; "
            f"classes better in b {found['classes_better_in_b']}, in a {found['classes_better_in_a']}; "
            f"{found['test']}: {_p(found['p_images'])}"
            + (f"; Welch over seeds: {_p(found['p_seeds'])}" if found["p_seeds"] is not None else "")
        )
    for found in result["comparisons"]:
        console.say(found["verdict"])


def _noise(blame: str, images: int) -> str:
    return blame.replace("images", f"{images:,} images")


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


def _sd(value: float | None) -> str:
    return "one run" if value is None else f"{value:.4f}"
