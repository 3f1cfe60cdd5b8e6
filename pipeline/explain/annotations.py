"""Annotations by people, in CUB's files: boxes and parts of pictures, attributes of classes.

The files have positions in pixels of the original picture; here they become pixels of the model's crop.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common.errors import DataError, name_some
from pipeline.config.data import DataConfig
from pipeline.data.pictures import Layout

AGAIN = "fix it and run again"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """names: of the parts, [P]. xy: float64 [n, P, 2], pixels of the crop; NaN where a part cannot be seen."""

    names: list[str]
    xy: Floats


def boxes_in_crop(config: DataConfig, samples: pd.DataFrame) -> Floats:
    """The birds' boxes, cut at the borders of the crop: float64 [n, 4], x0 y0 x1 y1 in 0..image_px.

    NaN where an image has no box.
    """
    corner = samples[["box_x", "box_y"]].to_numpy("float64")
    size = samples[["box_w", "box_h"]].to_numpy("float64")
    ends = np.stack([corner, corner + size], axis=1)  # [n, 2, 2]
    return np.clip(_into_crop(config, samples, ends), 0, config.image_px).reshape(len(samples), 4)


def parts_in_crop(config: DataConfig, samples: pd.DataFrame, root: Path) -> Parts | None:
    """The parts of each image; None for a data set without parts.

    Args:
        root: the folder with `parts/parts.txt` and `parts/part_locs.txt`.

    Raises:
        DataError: the files are damaged.
    """
    names_path, places_path = root / "parts" / "parts.txt", root / "parts" / "part_locs.txt"
    if not (names_path.is_file() and places_path.is_file()):
        return None
    names = _names(names_path)
    columns = ["id", "part", "x", "y", "visible"]
    try:
        places = pd.read_csv(places_path, sep=r"\s+", names=columns, dtype="float64")
        ids = places["id"].astype("int64")
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(
            f"{places_path}: not lines of `id part x y visible` ({' '.join(str(error).split())}); {AGAIN}"
        ) from error
    row = pd.Series(np.arange(len(samples)), index=samples["id"]).reindex(ids)
    known = row.notna().to_numpy() & places["part"].between(1, len(names)).to_numpy()
    places, row = places[known], row[known]
    xy = np.full((len(samples), len(names), 2), np.nan)
    visible = places["visible"].to_numpy() == 1
    part = places["part"].to_numpy("int64")[visible] - 1
    xy[row.to_numpy("int64")[visible], part] = places[["x", "y"]].to_numpy()[visible]
    xy = _into_crop(config, samples, xy)
    xy[((xy < 0) | (xy > config.image_px)).any(axis=2)] = np.nan
    return Parts(names, xy)


def attributes(root: Path, names: list[str]) -> pd.DataFrame | None:
    """The strength of each attribute of each class, in percent: a row a class, a column an attribute.

    None for a data set without attributes (`attributes/class_attribute_labels_continuous.txt` and `attributes.txt`).

    Args:
        names: of the classes that have images, in the order of their labels.

    Raises:
        DataError: the table does not fit `classes.txt` or the names of the attributes.
    """
    table = root / "attributes" / "class_attribute_labels_continuous.txt"
    places = [root.parent / "attributes.txt", root / "attributes.txt", root / "attributes" / "attributes.txt"]
    listed = next((path for path in places if path.is_file()), None)
    if listed is None or not table.is_file():
        return None
    columns, classes = _names(listed), _names(root / "classes.txt")
    try:
        values = np.loadtxt(table, ndmin=2)
    except ValueError as error:
        raise DataError(
            f"{table}: not a table of numbers ({' '.join(str(error).split())}); {AGAIN}"
        ) from error
    if values.shape != (len(classes), len(columns)):
        raise DataError(
            f"{table}: {values.shape[0]} rows of {values.shape[1]} numbers, where {len(classes)} classes and "
            f"{len(columns)} attributes are listed; {AGAIN}"
        )
    if unlisted := sorted(set(names).difference(classes)):
        raise DataError(f"{root / 'classes.txt'}: {name_some(unlisted)} not listed; {AGAIN}")
    return pd.DataFrame(values, index=pd.Index(classes), columns=columns).loc[names]


def differing(values: pd.DataFrame, a: str, b: str, count: int) -> pd.DataFrame:
    """The attributes in which two classes differ most: attribute, a, b (percent), largest difference first."""
    both = pd.DataFrame({"attribute": values.columns, "a": values.loc[a], "b": values.loc[b]})
    differing = both[both["a"] != both["b"]]
    order = (differing["a"] - differing["b"]).abs().sort_values(ascending=False, kind="stable").index
    return differing.loc[order].head(count).reset_index(drop=True)


def _into_crop(config: DataConfig, samples: pd.DataFrame, xy: Floats) -> Floats:
    """Positions xy, float64 [n, k, 2]: pixels of the original -> pixels of the centre crop of the stored picture."""
    layout = Layout.of(config)
    original = samples[["width", "height"]].to_numpy("int64")
    stored = np.array([layout.size(int(w), int(h)) for w, h in original])
    before = (stored - config.image_px) // 2
    return np.asarray(xy * (stored / original)[:, None] - before[:, None])


def _names(path: Path) -> list[str]:
    """The names in lines of `number name`, in their order."""
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); {AGAIN}") from error
    if short := [str(number) for number, line in enumerate(lines, 1) if len(line) == 1]:
        raise DataError(f"{path}: lines {name_some(short)} not of the form `number name`; {AGAIN}")
    return [line[1].strip() for line in lines if line]
