"""The evaluation of a split as W&B tables with pictures. It imports torch, so it is imported only when needed."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from PIL import Image

from pipeline.common import console
from pipeline.common.errors import DataError
from pipeline.common.tables import read_csv
from pipeline.data import prepare
from pipeline.evaluation import confusion
from pipeline.explain import selection
from pipeline.report.pictures import Pictures
from pipeline.runs import predictions
from pipeline.wandb_sync.client import import_wandb
from pipeline.wandb_sync.tracked_run import EvaluationFiles, TrackedRun

WORST = ("id", "path", "class_name", "predicted_name", "confidence", "probability", "rank")
Table = Any  # wandb.Table


def evaluation_tables(tracked: TrackedRun, evaluation: EvaluationFiles) -> dict[str, Table]:
    """`class_table`, `confusion_matrix` (the cells that are not 0), `confused_pairs` and `worst_errors`.

    Without the prepared data they have no pictures, and a warning says so.
    """
    folder, wandb = evaluation.directory, import_wandb(tracked)
    classes = read_csv(folder.table("per_class"), {"class_name": str}, predictions.AGAIN)
    predicted = predictions.read_table(folder, predictions.read_class_names(folder))
    typical = selection.most_typical(predicted)
    worst = selection.worst(predicted, tracked.config.report.gallery)
    pictures = _pictures(tracked)
    return {
        "class_table": _table(wandb, classes, [*map(typical.get, classes["class_name"])], pictures),
        "confusion_matrix": _table(wandb, confusion_cells(predicted)),
        "confused_pairs": _table(wandb, confusion.pairs(predicted)),
        "worst_errors": _table(wandb, worst[list(WORST)], worst["id"].tolist(), pictures),
    }


def confusion_cells(predicted: pd.DataFrame) -> pd.DataFrame:
    """The confusion matrix, a row a cell that is not 0: class_name, predicted_name, images."""
    counts = predicted.groupby(["label", "predicted", "class_name", "predicted_name"]).size()
    return counts.rename("images").reset_index()[["class_name", "predicted_name", "images"]]


def _plain(value: Any) -> Any:
    """A scalar of numpy as one of Python."""
    return value.item() if hasattr(value, "item") else value


def _pictures(tracked: TrackedRun) -> Pictures | None:
    try:
        data = prepare.load(tracked.config)
    except DataError as error:
        console.warn(f"the tables of W&B are without pictures: {error}")
        return None
    return Pictures(tracked.config.data, data, tracked.config.report.picture_px)


def _table(
    wandb: Any, rows: pd.DataFrame, images: Sequence[int | None] = (), pictures: Pictures | None = None
) -> Table:
    """A table of W&B.

    Args:
        images: image ids, one a row: their pictures become the first column. None leaves a cell empty.
    """
    columns = [str(name) for name in rows.columns]
    cells = [
        map(_plain, row) for row in rows.astype(object).where(rows.notna(), None).itertuples(index=False)
    ]
    if pictures is None or not images:
        table = wandb.Table(columns=columns)
        for row in cells:
            table.add_data(*row)
        return table
    table = wandb.Table(columns=["picture", *columns])
    for image, row in zip(images, cells, strict=True):
        table.add_data(None if image is None else _jpeg(wandb, pictures, image), *row)
    return table


def _jpeg(wandb: Any, pictures: Pictures, image: int) -> Any:
    return wandb.Image(Image.fromarray(pictures.pixels(image)), file_type="jpg")
