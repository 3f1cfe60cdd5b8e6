"""What a person should know of a data set before training: it describes, and decides nothing.

All splits are described; what is suggested comes from training images alone, so an inspection is not a reading of test.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.inspection import cuts, measures, picture_files, suggestions, twins

QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}
HALF = 0.5
CANDIDATES = 8  # a measure


@dataclass(frozen=True)
class Findings:
    """All that was found, as the page and the result show it."""

    config: Config
    data: prepare.Prepared
    measures: measures.Measures
    files: pd.DataFrame | None
    """as `picture_files.describe` returns it"""
    exact: list[twins.Twins]
    near: list[twins.Twins]
    sizes: pd.DataFrame
    """the quantiles of width, height, short side (px) and aspect ratio (width / height), a row each"""
    cuts: pd.DataFrame
    """a row a setting, as `cut_table` returns it"""
    suggested: list[suggestions.Suggestion]

    @property
    def result(self) -> dict[str, Any]:
        """The findings as plain values: the JSON on standard output."""
        samples = self.data.samples
        return {
            "images": len(samples),
            "classes": samples["label"].nunique(),
            "images_by_split": {split: len(self.data.rows(split)) for split in sample_table.SPLITS},
            "images_a_class": images_a_class(samples),
            "sizes": self.sizes.to_dict(orient="index"),
            "files": None if self.files is None else file_counts(self.files),
            "exact_duplicates": None if self.files is None else twins.counts(self.exact),
            "near_duplicates": twins.counts(self.near),
            "leaked_test_images": twins.leaked_test_images(samples, [*self.exact, *self.near]),
            "groups": twins.straddling(samples),
            "candidates": {
                name: samples["path"].iloc[rows].tolist() for name, rows in candidates(self.measures).items()
            },
            "cuts": [
                {name: None if pd.isna(value) else value for name, value in row.items()}
                for row in self.cuts.to_dict(orient="records")
            ],
            "suggested": suggestions.as_mapping(self.suggested),
        }


def find(config: Config) -> Findings:
    """Look at the table, the store and, where they are there, the files of a prepared data set."""
    data = prepare.load(config)
    described = picture_files.describe(data.samples, config)
    measured = measures.of(data.store)
    digests = [""] * len(data.samples) if described is None else described["digest"].tolist()
    return Findings(
        config=config,
        data=data,
        measures=measured,
        files=described,
        exact=twins.exact(data.samples, digests),
        near=twins.near(data.samples, measured.hashes, measured.one_colour, digests),
        sizes=size_quantiles(data.samples),
        cuts=cut_table(data.samples, config),
        suggested=suggestions.suggest(data.samples, config),
    )


def images_a_class(samples: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The least, median and most images a class of all splits and of each; a class without an image there counts 0."""
    classes = samples["label"].nunique()
    found = {}
    for split in ("all", *sample_table.SPLITS):
        rows = samples if split == "all" else samples[samples["split"] == split]
        if len(rows):
            counts = np.bincount(rows["label"], minlength=classes)
            found[split] = {
                "least": int(counts.min()),
                "median": float(np.median(counts)),
                "most": int(counts.max()),
            }
    return found


def size_quantiles(samples: pd.DataFrame) -> pd.DataFrame:
    """Quantiles of the pictures' sizes, of the pictures as they are shown."""
    sides = samples[["width", "height"]]
    values = {
        "width": sides["width"],
        "height": sides["height"],
        "short side": sides.min(axis=1),
        "aspect ratio": sides["width"] / sides["height"],
    }
    rows = {
        name: column.quantile(list(QUANTILES.values())).round(4).tolist() for name, column in values.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(QUANTILES))


def file_counts(described: pd.DataFrame) -> dict[str, dict[str, int]]:
    """How many files have each format, mode and orientation flag other than upright."""
    turned = described.loc[described["orientation"] != picture_files.UPRIGHT, "orientation"]
    columns = {"formats": described["format"], "modes": described["mode"], "orientation_flags": turned}
    return {
        name: {str(value): int(count) for value, count in column.value_counts().items()}
        for name, column in columns.items()
    }


def candidates(measured: measures.Measures) -> dict[str, list[int]]:
    """The rows that are most extreme in each measure, the most extreme first."""
    orders = {
        "darkest": measured.brightness,
        "least sharp": measured.sharpness,
        "most of one colour": -measured.one_colour,
    }
    return {
        name: [int(row) for row in np.argsort(values, kind="stable")[:CANDIDATES]]
        for name, values in orders.items()
    }


def cut_table(samples: pd.DataFrame, config: Config) -> pd.DataFrame:
    """What each setting keeps of the pictures and of the boxes, as shares 0..1; the configured setting comes first.

    Columns: crop (centre: of evaluation; random, random_resized: of training), resize, resize_px, crop_px; picture and
    box: the mean over images; picture_least and box_least: the worst image, of a random crop at its worst position;
    boxes_below_half: images of whose box less than half is kept in the mean. Not a number: there is no box.
    """
    rows = []
    settings = cuts.settings(config.data)
    for setting in settings:
        pictures, boxes = cuts.of_pictures(samples, setting), cuts.of_boxes(samples, setting)
        sizes = {"resize": setting.resize, "resize_px": setting.resize_px, "crop_px": setting.crop_px}
        for crop, picture, picture_least, box, box_least in (
            ("centre", pictures.centre, pictures.centre, boxes.centre, boxes.centre),
            ("random", pictures.random, pictures.random_least, boxes.random, boxes.random_least),
        ):
            rows.append({"crop": crop, **sizes, **_shares(picture, picture_least, box, box_least)})
    for resize in ("squash", "short_side"):
        setting = cuts.Setting(resize, config.data.resize_px, config.data.image_px)
        picture, box = cuts.by_random_resized(samples, setting, config.data.crop_area_min)
        nothing = np.full(len(samples), np.nan)
        sizes = {"resize": resize, "resize_px": setting.resize_px, "crop_px": setting.crop_px}
        rows.append({"crop": "random_resized", **sizes, **_shares(picture, nothing, box, nothing)})
    return pd.DataFrame(rows)


def _shares(
    picture: cuts.Floats, picture_least: cuts.Floats, box: cuts.Floats, box_least: cuts.Floats
) -> dict[str, float]:
    there = ~np.isnan(box)

    def of(values: npt.NDArray[np.float64], how: Any) -> float:
        return round(float(how(values)), 6) if len(values) and not np.isnan(values).any() else float("nan")

    return {
        "picture": of(picture, np.mean),
        "picture_least": of(picture_least, np.min),
        "box": of(box[there], np.mean),
        "box_least": of(box_least[there], np.min),
        "boxes_below_half": float((box[there] < HALF).sum()) if there.any() else float("nan"),
    }


def worst_boxes(samples: pd.DataFrame, config: Config, count: int) -> Sequence[tuple[int, float]]:
    """The rows of whose box the crop of evaluation keeps least, with the share, the least first; only those it cuts."""
    kept = cuts.of_boxes(samples, cuts.settings(config.data)[0]).centre
    order = np.argsort(kept, kind="stable")[:count]  # not a number comes last
    return [(int(row), float(kept[row])) for row in order if kept[row] < 1]
