"""What a page shows beside an answer: typical pictures of each class, and its look-alikes with what tells them apart.

All is of the validation split (of a class without one, of the training split), as the exported model sees it: the test
split is not looked at.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from pipeline.common import console
from pipeline.common.errors import DataError, UserError
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.data.prepare import Prepared
from pipeline.data.transforms import CentreCrop
from pipeline.explain import annotations
from pipeline.report.content import attribute_rows
from pipeline.report.pictures import Pictures

IMAGES_A_CLASS = 12  # that are looked at
LOOK_ALIKES = 2
LEAST = 1e-12  # probability
ATTRIBUTES_SHOWN = 4
PICTURE_PX = 96
PICTURES_BY_CLASSES = ((300, 2), (1000, 1))
"""number of classes up to which each has so many pictures: a page stays small"""
Floats = npt.NDArray[np.float64]


def companions(config: Config, folder: Path, facts: Mapping[str, Any], *, pictures: bool) -> dict[str, Any]:
    """`look_alikes`: of each class, {"label", "attributes"}; `pictures`: of each class, data URIs; in plain types.

    Both are empty, and it is said, where the data are not at hand.

    Args:
        folder: of the export; facts: the metadata of its model.
        pictures: show pictures of the data, which may have a licence.
    """
    nothing: dict[str, Any] = {"look_alikes": [], "pictures": []}
    try:
        data = prepare.load(config)
        if sample_table.class_names(data.samples) != facts["classes"]:
            raise DataError(f"{config.data.root}: its classes are not the model's")
    except UserError as error:
        console.warn(f"the page has no look-alikes and no pictures of the classes: {error}")
        return nothing
    rows = _rows(data, len(facts["classes"]))
    if not rows:
        return nothing
    probabilities, labels = _probabilities(config, folder, data, rows), data.labels[rows]
    shown = _typical(rows, labels, probabilities) if pictures else {}
    of_data = Pictures(config.data, data, PICTURE_PX)
    ids = data.samples["id"]
    return {
        "look_alikes": _look_alikes(config, facts["classes"], labels, probabilities),
        "pictures": [
            [of_data.plain(int(ids.iloc[row])) for row in shown.get(label, [])]
            for label in range(len(facts["classes"]))
        ]
        if shown
        else [],
    }


def _rows(data: Prepared, classes: int) -> list[int]:
    """Some images of each class."""
    labels = data.labels
    val, train = (np.array(data.rows(split), np.int64) for split in ("val", "train"))
    rows: list[int] = []
    for label in range(classes):
        of_class = val[labels[val] == label]
        if len(of_class) == 0:
            of_class = train[labels[train] == label]
        rows += of_class[:IMAGES_A_CLASS].tolist()
    return rows


def _probabilities(config: Config, folder: Path, data: Prepared, rows: Sequence[int]) -> Floats:
    """float64 [n, C], by the exported graph."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    crop, found = CentreCrop(config.data), []
    with console.bar("look-alikes", len(rows)) as bar:
        for row in rows:
            images = np.ascontiguousarray(crop(data.store[row], 0, 0).transpose(2, 0, 1)[None])
            found.append(session.run(["probabilities"], {"images": images})[0][0])
            bar.advance(1)
    return np.asarray(found, np.float64)


def _typical(
    rows: Sequence[int], labels: npt.NDArray[np.int64], probabilities: Floats
) -> dict[int, list[int]]:
    """The rows of each class that the model finds the most probable of it; few, or none, of many classes."""
    classes = probabilities.shape[1]
    count = next((count for most, count in PICTURES_BY_CLASSES if classes <= most), 0)
    own = probabilities[np.arange(len(rows)), labels]
    return {
        label: [rows[n] for n in places[np.argsort(-own[places], kind="stable")][:count]]
        for label in range(classes)
        if len(places := np.flatnonzero(labels == label))
    }


def _look_alikes(
    config: Config, names: Sequence[str], labels: npt.NDArray[np.int64], probabilities: Floats
) -> list[list[dict[str, Any]]]:
    """Of each class those that the model finds the most probable beside it, and how their attributes differ, in percent.

    Probable by the geometric mean over images of both, for few of them are mistaken, and each says what it resembles.
    """
    count = len(names)
    mean = np.zeros((count, count))
    for label in np.unique(labels):
        mean[label] = np.log(np.maximum(probabilities[labels == label], LEAST)).mean(axis=0)
    shared = mean + mean.T
    np.fill_diagonal(shared, -np.inf)
    root = prepare.find_root(config.data)
    values = annotations.attributes(root, list(names)) if root else None

    def between(a: int, b: int) -> list[dict[str, Any]]:
        if values is None:
            return []
        return attribute_rows(annotations.differing(values, names[a], names[b], ATTRIBUTES_SHOWN))

    nearest = np.argsort(-shared, axis=1, kind="stable")[:, : min(LOOK_ALIKES, count - 1)]
    return [
        [{"label": int(other), "attributes": between(label, int(other))} for other in others]
        for label, others in enumerate(nearest)
    ]
