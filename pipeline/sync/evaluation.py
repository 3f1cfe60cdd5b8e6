"""The evaluations of a run as W&B shows them: numbers for its summary, and tables with pictures."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from pipeline import stored, terminal
from pipeline.data import prepare
from pipeline.data.prepare import Prepared
from pipeline.errors import DataError
from pipeline.explain import chosen
from pipeline.report.pictures import Pictures
from pipeline.sync.place import Place

WORST = ("id", "path", "class_name", "predicted_name", "confidence", "probability", "rank")
FILES = ("metrics.json", "per_class.csv", "confusion.csv", "confused_pairs.csv", "predictions.csv", "report.html")
Table = Any  # wandb.Table


@dataclass(frozen=True)
class Evaluation:
    """What `eval` has left of one split."""

    split: str
    folder: Path
    metrics: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The numbers as `eval/SPLIT/NAME`."""
        return {
            f"eval/{self.split}/{name}": value
            for name, value in self.metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def files(self) -> list[Path]:
        """The tables and the page that there are."""
        return [self.folder / name for name in FILES if (self.folder / name).is_file()]


def evaluations(place: Place) -> list[Evaluation]:
    """The evaluations in a run directory, by the name of their split.

    Raises:
        DataError: one of them is damaged.
    """
    folders = sorted(path.parent for path in place.run_dir.glob("eval/*/metrics.json"))
    return [Evaluation(folder.name, folder, stored.read_metrics(folder)) for folder in folders]


class Tables:
    """Makes the tables of evaluations; without the prepared data they have no pictures, which is said once."""

    def __init__(self, place: Place) -> None:
        self._wandb = importlib.import_module("wandb")
        self._config = place.config
        self._pictures: Pictures | None = None
        try:
            data: Prepared = prepare.load(place.config)
            self._pictures = Pictures(place.config.data, data, place.config.report.picture_px)
        except DataError as error:
            terminal.warn(f"the tables of W&B are without pictures: {error}")

    def of(self, evaluation: Evaluation) -> dict[str, Table]:
        """`classes`, `confusion` (the cells that are not 0), `confused_pairs` and `worst_errors`."""
        folder = evaluation.folder
        classes = pd.read_csv(folder / "per_class.csv", keep_default_na=False, na_values=[""])
        predicted = stored.read_predictions(folder, stored.read_class_names(folder))
        surest = [chosen.typical(predicted, str(name), 1)["id"].tolist() for name in classes["class_name"]]
        worst = chosen.worst(predicted, self._config.report.gallery)
        pairs = pd.read_csv(folder / "confused_pairs.csv", keep_default_na=False)
        return {
            "classes": self._table(classes, [ids[0] if ids else None for ids in surest]),
            "confusion": self._table(cells(predicted)),
            "confused_pairs": self._table(pairs),
            "worst_errors": self._table(worst[list(WORST)], worst["id"].tolist()),
        }

    def _table(self, rows: pd.DataFrame, images: Sequence[int | None] = ()) -> Table:
        """A table of W&B; `images`: ids of the pictures that stand first in each row."""
        shown = bool(images) and self._pictures is not None
        table = self._wandb.Table(columns=["picture"] * shown + [str(name) for name in rows.columns])
        for number, row in enumerate(rows.astype(object).where(rows.notna(), None).itertuples(index=False)):
            table.add_data(*([self._picture(images[number])] if shown else []), *map(_plain, row))
        return table

    def _picture(self, image: int | None) -> Any:
        if image is None or self._pictures is None:
            return None
        return self._wandb.Image(Image.fromarray(self._pictures.pixels(image)), file_type="jpg")


def cells(predicted: pd.DataFrame) -> pd.DataFrame:
    """The confusion matrix, a row a cell that is not 0: class_name, predicted_name, images."""
    counted = predicted.groupby(["label", "predicted", "class_name", "predicted_name"]).size()
    return counted.rename("images").reset_index()[["class_name", "predicted_name", "images"]]


def _plain(value: Any) -> Any:
    """numpy's scalars as Python's."""
    return value.item() if hasattr(value, "item") else value
