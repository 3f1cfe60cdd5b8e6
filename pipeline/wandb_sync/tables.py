"""The evaluation of a split as W&B's tables, with pictures. Imports torch, and so only where there is one."""

import importlib
from collections.abc import Sequence
from typing import Any

import pandas as pd
from PIL import Image

from pipeline.common import console
from pipeline.common.errors import DataError
from pipeline.common.tables import read_csv
from pipeline.data import prepare
from pipeline.explain import selection
from pipeline.report.pictures import Pictures
from pipeline.runs import predictions
from pipeline.wandb_sync.tracked_run import EvaluationFiles, TrackedRun

WORST = ("id", "path", "class_name", "predicted_name", "confidence", "probability", "rank")
Table = Any  # wandb.Table


def evaluation_tables(place: TrackedRun, evaluation: EvaluationFiles) -> dict[str, Table]:
    """`class_table`, `confusion_matrix` (the cells that are not 0), `confused_pairs` and `worst_errors`.

    Without the prepared data they have no pictures, which is said.
    """
    folder = evaluation.folder
    classes = read_csv(folder / "per_class.csv")
    predicted = predictions.read_predictions(folder, predictions.read_class_names(folder))
    surest = [selection.typical(predicted, str(name), 1)["id"].tolist() for name in classes["class_name"]]
    worst = selection.worst(predicted, place.config.report.gallery)
    pictures = _pictures(place)
    return {
        "class_table": _table(classes, [ids[0] if ids else None for ids in surest], pictures),
        "confusion_matrix": _table(cells(predicted)),
        "confused_pairs": _table(read_csv(folder / "confused_pairs.csv")),
        "worst_errors": _table(worst[list(WORST)], worst["id"].tolist(), pictures),
    }


def cells(predicted: pd.DataFrame) -> pd.DataFrame:
    """The confusion matrix, a row a cell that is not 0: class_name, predicted_name, images."""
    counted = predicted.groupby(["label", "predicted", "class_name", "predicted_name"]).size()
    return counted.rename("images").reset_index()[["class_name", "predicted_name", "images"]]


def _plain(value: Any) -> Any:
    """numpy's scalars as Python's."""
    return value.item() if hasattr(value, "item") else value


def _pictures(place: TrackedRun) -> Pictures | None:
    try:
        data = prepare.load(place.config)
    except DataError as error:
        console.warn(f"the tables of W&B are without pictures: {error}")
        return None
    return Pictures(place.config.data, data, place.config.report.picture_px)


def _table(rows: pd.DataFrame, images: Sequence[int | None] = (), pictures: Pictures | None = None) -> Table:
    """A table of W&B; `images`: ids of the pictures that stand first in each row."""
    wandb = importlib.import_module("wandb")
    shown = bool(images) and pictures is not None
    table = wandb.Table(columns=["picture"] * shown + [str(name) for name in rows.columns])
    for number, row in enumerate(rows.astype(object).where(rows.notna(), None).itertuples(index=False)):
        picture = images[number] if shown else None
        first = (
            [] if pictures is None or not shown else [None if picture is None else _jpeg(pictures, picture)]
        )
        table.add_data(*first, *map(_plain, row))
    return table


def _jpeg(pictures: Pictures, image: int) -> Any:
    pixels = Image.fromarray(pictures.pixels(image))
    return importlib.import_module("wandb").Image(pixels, file_type="jpg")
