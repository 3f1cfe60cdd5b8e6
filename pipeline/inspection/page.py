"""The findings as one HTML page with pictures, in the style of the report: no network, no scripts."""

from collections.abc import Sequence
from importlib import resources
from typing import Any

import cv2
import jinja2
import numpy as np
import numpy.typing as npt

from pipeline.data import prepare, sample_table
from pipeline.data.pictures import Pixels, resized
from pipeline.inspection import findings, twins
from pipeline.report.page_values import data_uri, percent, readable

PICTURE_PX, CLASS_PX = 220, 64
MANY_CLASSES, SMALLER_CLASS_PX = 1000, 40  # a page of 5,000 classes stays below 25 MB
GROUPS_SHOWN, TWINS_SHOWN, CUT_SHOWN = 24, 6, 8
BINS = 40
KEPT, LOST = (64, 200, 210), (240, 120, 90)  # of the crop's frame, and of the box's
ORIENTATIONS = {
    2: "mirrored",
    3: "upside down",
    4: "mirrored, upside down",
    5: "mirrored, on its side",
    6: "on its side, shown turned right",
    7: "mirrored, on its side",
    8: "on its side, shown turned left",
}
Floats = npt.NDArray[np.float64]


def render(found: findings.Findings) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = percent
    environment.filters["readable"] = readable
    result, pictures = found.result, Thumbnails(found.data)
    samples = found.data.samples
    return environment.from_string(_read("pipeline.inspection", "page.html")).render(
        css=_read("pipeline.report", "page.css"),
        name=_name(found),
        source=found.config.data.source,
        about=result,
        quantiles=list(findings.QUANTILES),
        suggested=found.suggested,
        turned=_turned(found, pictures),
        twin_sections=[
            {"title": title, "what": what, "counts": result[key], "groups": _groups(groups, pictures)}
            for title, what, key, groups in (
                ("Equal files", "exact", "exact_duplicates", found.exact),
                ("Near duplicates", "near", "near_duplicates", found.near),
            )
        ],
        candidates=_candidates(found, pictures),
        cut=_cut(found, pictures),
        cuts=found.cuts.to_dict(orient="records"),
        has_boxes=bool(found.cuts["box"].notna().any()),
        classes=_classes(found.data, pictures),
        class_bars=bars(np.sort(np.bincount(samples["label"]))[::-1].astype(float)),
        short_sides=histogram(samples[["width", "height"]].min(axis=1).to_numpy(float)),
        ratios=histogram((samples["width"] / samples["height"]).to_numpy(float)),
        splits=sample_table.SPLITS,
    )


class Thumbnails:
    """The pictures of a data set, whole and in the proportions of the original, as data URIs."""

    def __init__(self, data: prepare.Prepared) -> None:
        self.samples = data.samples
        self._store = data.store
        self._sizes = data.samples[["width", "height"]].to_numpy(float)

    def pixels(self, row: int, px: int) -> Pixels:
        """The picture of a row, its longest side `px`: uint8 [H, W, 3] RGB."""
        size = self._sizes[row]
        width, height = (max(1, round(float(side))) for side in size * px / size.max())
        return resized(self._store[row], width, height)

    def card(self, row: int, note: str = "", px: int = PICTURE_PX) -> dict[str, Any]:
        """The picture of a row and what is said below it."""
        sample = self.samples.iloc[row]
        return {
            "picture": data_uri(self.pixels(row, px)),
            "name": readable(str(sample["class_name"])),
            "split": sample["split"],
            "path": sample["path"],
            "note": note,
        }


def bars(values: Floats) -> str:
    """The `d` of an SVG path around adjacent bars in a box of 100 x 100, the largest as high as the box."""
    tops = 100 - 100 * values / max(float(values.max()), 1e-9)
    ends = np.arange(1, len(values) + 1) * 100 / len(values)
    return "M0 100" + "".join(f"V{top:.2f}H{end:.2f}" for top, end in zip(tops, ends, strict=True)) + "V100z"


def histogram(values: Floats) -> dict[str, Any]:
    """A histogram as `bars`, and the ends of its axis."""
    counts, edges = np.histogram(values, bins=BINS)
    return {"path": bars(counts.astype(float)), "from": edges[0], "to": edges[-1]}


def _name(found: findings.Findings) -> str:
    config = found.config.data
    return config.path.name if config.path is not None and config.path.name else config.source


def _groups(groups: Sequence[twins.Twins], pictures: Thumbnails) -> list[dict[str, Any]]:
    return [
        {
            "cards": [pictures.card(row) for row in group.rows[:TWINS_SHOWN]],
            "more": max(0, len(group.rows) - TWINS_SHOWN),
            "across": group.splits > 1,
            "classes": group.classes,
            "bits": group.bits,
        }
        for group in groups[:GROUPS_SHOWN]
    ]


def _candidates(found: findings.Findings, pictures: Thumbnails) -> list[dict[str, Any]]:
    measured = found.measures
    notes = {
        "darkest": [f"brightness {percent(value)}" for value in measured.brightness],
        "least sharp": [f"variance {value:.3g}" for value in measured.sharpness],
        "most of one colour": [f"{percent(value)} of one colour" for value in measured.one_colour],
    }
    return [
        {"name": name, "cards": [pictures.card(row, notes[name][row]) for row in rows]}
        for name, rows in findings.candidates(measured).items()
    ]


def _turned(found: findings.Findings, pictures: Thumbnails) -> list[dict[str, Any]]:
    if found.files is None:
        return []
    flags = found.files["orientation"].to_numpy()
    rows = [int(row) for row in np.isin(flags, list(ORIENTATIONS)).nonzero()[0][:TWINS_SHOWN]]
    return [pictures.card(row, f"flag {flags[row]}: stored {ORIENTATIONS[int(flags[row])]}") for row in rows]


def _cut(found: findings.Findings, pictures: Thumbnails) -> list[dict[str, Any]]:
    """The pictures of whose box the crop of evaluation keeps least, with the crop and the box drawn into them."""
    cards = []
    for row, share in findings.worst_boxes(pictures.samples, found.config, CUT_SHOWN):
        card = pictures.card(row, f"{percent(share)} of the box is kept")
        card["picture"] = data_uri(_framed(found, pictures, row))
        cards.append(card)
    return cards


def _framed(found: findings.Findings, pictures: Thumbnails, row: int) -> Pixels:
    pixels = np.ascontiguousarray(pictures.pixels(row, PICTURE_PX))
    height, width = pixels.shape[:2]
    data, sample = found.config.data, pictures.samples.iloc[row]
    stored_height, stored_width = found.data.store[row].shape[:2]
    across, down = (
        data.image_px * shown / stored for shown, stored in ((width, stored_width), (height, stored_height))
    )
    _frame(pixels, (width - across) / 2, (height - down) / 2, across, down, KEPT)
    scale = width / float(sample["width"])
    x, y, box_width, box_height = (float(sample[f"box_{side}"]) * scale for side in "xywh")
    _frame(pixels, x, y, box_width, box_height, LOST)
    return pixels


def _frame(pixels: Pixels, x: float, y: float, width: float, height: float, colour: tuple[int, ...]) -> None:
    corners = (round(x), round(y)), (round(x + width) - 1, round(y + height) - 1)
    cv2.rectangle(pixels, *corners, colour, 2)


def _classes(data: prepare.Prepared, pictures: Thumbnails) -> list[dict[str, Any]]:
    """The classes, those with the fewest images first, each with its first training image or else its first one."""
    samples = data.samples.assign(row=np.arange(len(data.samples)))
    by_split = np.zeros((samples["label"].nunique(), len(sample_table.SPLITS)), np.int64)
    np.add.at(by_split, (samples["label"], samples["split"].map(sample_table.SPLITS.index)), 1)
    shown = samples.assign(other=samples["split"] != "train").sort_values(["other", "row"], kind="stable")
    first = shown.groupby("label")["row"].first()
    names = sample_table.class_names(samples)
    order = np.argsort(by_split.sum(axis=1), kind="stable")
    px = SMALLER_CLASS_PX if len(names) > MANY_CLASSES else CLASS_PX
    return [
        {
            "name": readable(names[label]),
            "picture": data_uri(pictures.pixels(int(first[label]), px)),
            "counts": by_split[label].tolist(),
        }
        for label in map(int, order)
    ]


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
