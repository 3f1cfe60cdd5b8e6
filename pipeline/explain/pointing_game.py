"""The pointing game: whether heat maps lie on the bird, by the boxes and parts that people marked."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.evaluation import statistics
from pipeline.explain.annotations import Floats, Parts
from pipeline.explain.grad_cam import enlarged

PART_RADIUS = (
    0.15  # largest distance of a peak from a part that it is on, as a share of the box's longer side
)


def play(
    predicted: pd.DataFrame, maps: npt.NDArray[Any], boxes: Floats, parts: Parts | None, image_px: int
) -> pd.DataFrame:
    """A row an image that has a box: the peak of its heat map, and how much of the map lies on the bird.

    Columns: id, path, class_name, predicted_name, correct; peak_x, peak_y (pixels of the crop, NaN for an
    empty map); hit (the peak lies in the box); energy (share of the map's sum in the box, 0..1); box_share
    (share of the crop in the box, 0..1: the chance that a random point hits); part (name of the visible part
    nearest to the peak, empty without one within `PART_RADIUS`).

    Args:
        predicted: rows of the predictions table, n of them.
        maps: [n, h, w], 0..1.
        boxes: float64 [n, 4], x0 y0 x1 y1 in pixels of the crop.
    """
    rows = []
    for position, (grid, box) in enumerate(zip(maps, boxes, strict=True)):
        if np.isnan(box).any():
            continue
        peak = peak_of(grid, image_px)
        rows.append(
            {
                "position": position,
                "peak_x": peak[0],
                "peak_y": peak[1],
                "hit": bool((peak >= box[:2]).all() and (peak <= box[2:]).all()),
                "energy": _energy(grid, box, image_px),
                "box_share": float(np.prod(box[2:] - box[:2]) / image_px**2),
                "part": _part(peak, box, parts, position),
            }
        )
    names = ["position", "peak_x", "peak_y", "hit", "energy", "box_share", "part"]
    measures = pd.DataFrame(rows, columns=names)
    images = predicted.iloc[measures["position"].to_numpy("int64")].reset_index(drop=True)
    correct = (images["label"] == images["predicted"]).rename("correct")
    return pd.concat(
        [images[["id", "path", "class_name", "predicted_name"]], correct, measures.drop(columns="position")],
        axis=1,
    )


def rates(images: pd.DataFrame) -> pd.DataFrame:
    """The rate of hits among all, right and wrong predictions.

    Columns: predictions, n, hits, rate with its Wilson 95 % interval rate_low and rate_high, chance (mean
    box_share), energy (mean). The pointing game is Zhang et al.'s (IJCV 2018) without their tolerance of 15
    pixels; the energy is Wang et al.'s (Score-CAM, CVPR workshops 2020).

    Args:
        images: the table that `play` returns.
    """
    rows = []
    for name, group in _groups(images).items():
        low, high = statistics.wilson(int(group["hit"].sum()), len(group))
        rows.append(
            {
                "predictions": name,
                "n": len(group),
                "hits": int(group["hit"].sum()),
                "rate": float(group["hit"].mean()),
                "rate_low": low,
                "rate_high": high,
                "chance": float(group["box_share"].mean()),
                "energy": float(group["energy"].mean()),
            }
        )
    return pd.DataFrame(rows)


def count_parts(images: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """How often the peak lies on each part: a row a part, and one for no part; a column a group of predictions."""
    counts = {name: rows["part"].value_counts() for name, rows in _groups(images).items()}
    index = pd.Index([*names, ""], name="part")
    return pd.DataFrame(
        {name: count.reindex(index, fill_value=0) for name, count in counts.items()}
    ).reset_index()


def _groups(images: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {"all": images, "right": images[images["correct"]], "wrong": images[~images["correct"]]}


def peak_of(grid: npt.NDArray[Any], image_px: int) -> Floats:
    """x, y of the centre of the map's strongest cell, in pixels of the crop; NaN for an empty map."""
    if not grid.any():
        return np.full(2, np.nan)
    row, column = np.unravel_index(int(grid.argmax()), grid.shape)
    height, width = grid.shape
    return np.array([(column + 0.5) / width, (row + 0.5) / height]) * image_px


def _energy(grid: npt.NDArray[Any], box: Floats, image_px: int) -> float:
    large = enlarged(grid, image_px, image_px)
    x0, y0, x1, y1 = np.round(box).astype(int)
    total = float(large.sum(dtype=np.float64))
    return float(large[y0:y1, x0:x1].sum(dtype=np.float64)) / total if total else 0.0


def _part(peak: Floats, box: Floats, parts: Parts | None, position: int) -> str:
    if parts is None:
        return ""
    distances = np.linalg.norm(parts.xy[position] - peak, axis=1)
    if np.isnan(distances).all():
        return ""
    nearest = int(np.nanargmin(distances))
    reach = PART_RADIUS * float((box[2:] - box[:2]).max())
    return parts.names[nearest] if distances[nearest] <= reach else ""
