"""`plumage inspect`: the findings about a data set on the terminal, as a page and as the result."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common import console, files
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.inspection import findings, page


def inspect_data(config: Config) -> dict[str, Any]:
    """Describe a prepared data set on the terminal and as a page; return the page's path and the findings.

    Raises:
        UserError: the data were not prepared, or have changed since.
    """
    found = findings.find(config)
    path = page_path(config)
    files.write_text(path, page.render(found))
    _show(found)
    console.say(f"inspect  {path}  {files.size_in_words(path.stat().st_size)}")
    return {"page": str(path), **found.result}


def page_path(config: Config) -> Path:
    """Where the page is written: beside the sample table, below `data.root`."""
    samples, _ = prepare.output_paths(config)
    return samples.with_name(samples.name.replace("samples", "inspection", 1)).with_suffix(".html")


def _show(found: findings.Findings) -> None:
    result = found.result
    console.show_table(
        f"{found.config.data.source}: {result['images']:,} images of {result['classes']:,} classes",
        ["images a class", "least", "median", "most"],
        [
            [split, *(f"{count:,g}" for count in counts.values())]
            for split, counts in result["images_a_class"].items()
        ],
    )
    console.show_table(
        "sizes, px",
        ["", *findings.QUANTILES],
        [[name, *(f"{value:.4g}" for value in row)] for name, *row in found.sizes.itertuples()],
    )
    for sentence in sentences(result):
        console.say(sentence)
    shown = found.cuts[found.cuts["crop"] != "random_resized"]
    console.show_table(
        "share that is kept",
        ["resize, crop", "picture", "box", "worst box", "boxes below half"],
        [
            [
                f"{row['resize']} {row['resize_px']}, {row['crop']} {row['crop_px']}",
                *(_percent(row[name]) for name in ("picture", "box", "box_least")),
                _count(row["boxes_below_half"]),
            ]
            for row in shown.to_dict(orient="records")
        ],
    )
    for one in found.suggested:
        console.say(f"suggested  {one.key}={one.value}: {one.rule}")


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f} %"


def _count(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:,.0f}"


def sentences(result: dict[str, Any]) -> list[str]:
    """The files and the twins in words, from the result."""
    described, exact, near = result["files"], result["exact_duplicates"], result["near_duplicates"]
    if described is None:
        said = [
            "files  the folder of the pictures is not there now: formats and equal files were not checked"
        ]
    else:
        counts = [
            ", ".join(f"{name} {count:,}" for name, count in described[what].items())
            for what in ("formats", "modes")
        ]
        turned = sum(described["orientation_flags"].values())
        said = [f"files  {counts[0]}; {counts[1]}; turned by an orientation flag: {turned:,}"]
        said.append(f"exact duplicates  {_of_twins(exact)}")
    said.append(f"near duplicates  {_of_twins(near)}")
    said.append(f"  {result['leaked_test_images']:,} test images have a twin in train or validation")
    if (groups := result["groups"]) is not None:
        said.append(f"groups  {groups['groups']:,}, of which {len(groups['straddling']):,} are in two splits")
    return said


def _of_twins(counted: dict[str, int]) -> str:
    groups = f"{counted['groups']:,} group{'' if counted['groups'] == 1 else 's'}"
    return (
        f"{counted['images']:,} images in {groups}, {counted['groups_across_splits']:,} across splits, "
        f"{counted['groups_of_two_classes']:,} of two classes"
    )
