"""The same predictions scored by other labels: `eval.labels=[FILE]`, decisions as `data.corrections` takes them.

Nothing is predicted or trained again: an image gets another label, or is left out. So a cleaned label set, or a list of
images to leave out, gives a second score beside the official one, and a paired difference.
"""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.common import tables
from pipeline.common.errors import ConfigError, DataError, name_some
from pipeline.config.schema import Config
from pipeline.data import corrections
from pipeline.data.prepare import Prepared
from pipeline.evaluation import statistics
from pipeline.runs.directory import EvaluationDirectory
from pipeline.runs.predictions import AGAIN

LEFT_OUT = -1
"""the label of an image that a label set does not score"""


def of(config: Config, data: Prepared) -> dict[str, pd.DataFrame]:
    """What the files of `eval.labels` change of the evaluated split, by the names of the files: id, label (int64).

    Raises:
        DataError: a file is missing or damaged, does not fit the data set, or leaves no image of the split.
        ConfigError: two files have one name.
    """
    paths = config.eval.labels
    names = [path.stem for path in paths]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"eval.labels: more than one file is called {name_some(doubled)}; rename one")
    samples = data.samples
    rows = samples.iloc[data.rows(config.eval.split)]
    label_of = samples.drop_duplicates("class_name").set_index("class_name")["label"]
    found = {}
    for name, path in zip(names, paths, strict=True):
        changing = corrections.changes(corrections.read(path), samples, config.data.source)
        changing = changing[changing["id"].isin(rows["id"])]
        label = changing["decision"].map(label_of).fillna(LEFT_OUT).astype("int64")
        if 0 < len(rows) == (label == LEFT_OUT).sum():  # a split without images is another error
            raise DataError(
                f"{path}: leaves no image of {config.eval.split} to score; keep some, or drop the file from eval.labels"
            )
        found[name] = pd.DataFrame({"id": changing["id"], "label": label}).reset_index(drop=True)
    return found


def write(folder: EvaluationDirectory, sets: dict[str, pd.DataFrame]) -> None:
    """Keep the label sets beside the predictions, in the place of earlier ones."""
    for path in folder.label_sets():
        path.unlink()
    for name, table in sets.items():
        tables.write_csv(table, folder.label_set(name))


def read(folder: EvaluationDirectory) -> dict[str, pd.DataFrame]:
    """The label sets that are kept beside the predictions, by name.

    Raises:
        DataError: one is damaged.
    """
    return {
        path.stem: tables.read_csv(path, {"id": "int64", "label": "int64"}, AGAIN)
        for path in folder.label_sets()
    }


def relabelled(predicted: pd.DataFrame, changed: pd.DataFrame) -> pd.DataFrame:
    """The predictions table with the labels of a set, without the images that it leaves out.

    Args:
        predicted: the predictions table: id, label, predicted, ...
        changed: as `of` returns it.
    """
    new = predicted["id"].map(changed.set_index("id")["label"])
    table = predicted.assign(label=new.fillna(predicted["label"]).astype("int64"))
    return table[table["label"] != LEFT_OUT]


def summary(predicted: pd.DataFrame, changed: pd.DataFrame) -> dict[str, Any]:
    """The score by a label set, in plain types.

    relabelled, left_out: images of the split; n: the others; top1 with Wilson's 95 % interval; per_class_mean;
    difference: this top1 minus the official one of the same images, with the interval of the paired bootstrap.
    """
    scored = relabelled(predicted, changed)
    official = predicted.loc[scored.index]
    right, before = (
        np.asarray(table["label"] == table["predicted"], np.float64) for table in (scored, official)
    )
    low, high = statistics.wilson(int(right.sum()), len(right))
    gain, gain_low, gain_high = statistics.difference(before, right)
    return {
        "relabelled": int((changed["label"] != LEFT_OUT).sum()),
        "left_out": int((changed["label"] == LEFT_OUT).sum()),
        "n": len(scored),
        "top1": float(right.mean()),
        "top1_low": low,
        "top1_high": high,
        "per_class_mean": float(pd.Series(right).groupby(scored["label"].to_numpy()).mean().mean()),
        "difference": gain,
        "difference_low": gain_low,
        "difference_high": gain_high,
    }


def summaries(folder: EvaluationDirectory, predicted: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """`summary` of each label set beside the predictions, by name."""
    return {name: summary(predicted, changed) for name, changed in read(folder).items()}
