"""The values of the report page: stored tables become plain values, in the words and units that a reader sees."""

import shlex
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.common import files, tables
from pipeline.common.errors import DataError
from pipeline.data import prepare
from pipeline.evaluation import confusion as confused
from pipeline.explain import annotations, selection
from pipeline.explain.explain import Explained, StoredEvaluation
from pipeline.models.licences import licence_of
from pipeline.report import figures
from pipeline.report.page_values import readable
from pipeline.report.pictures import Pictures
from pipeline.runs.directory import AuditDirectory, RunDirectory, Table

CLASS_PX = 72
ATTRIBUTES_SHOWN = 8
AUDIT_SHOWN = 24
MANY_CLASSES = 1_000  # a page whose table has more is slow
ENDS_SHOWN = 100  # of many classes: the worst, and the best
NUMBERS = ["n", "accuracy", "precision", "f1", "train_images", "taken_for", "accuracy_low", "accuracy_high"]
WITHOUT_IMAGES = ["accuracy", "f1"]  # that a class without images lacks
Types = dict[Hashable, Any]
AUDIT_AGAIN = "run `audit` again"
LABEL_ERRORS: Types = {"id": "int64", "path": str, "split": str, "class_name": str, "suggested_name": str}
DUPLICATES: Types = {
    **{f"id_{side}": "int64" for side in "ab"},
    **{f"{name}_{side}": str for name in ("path", "split", "class") for side in "ab"},
    "feature_similarity": "float64",
}
Values = dict[str, Any]


def training(evaluation: StoredEvaluation) -> str:
    """The training curves as SVG; empty before the first epoch is over."""
    log = RunDirectory(evaluation.config.run_dir).read_log(steps=False)
    return figures.curves(log, int(evaluation.metrics["epoch"]))


def classes(evaluation: StoredEvaluation) -> pd.DataFrame:
    """The table of classes: that of the evaluation with `taken_for`, the label of the class that each is most often
    mistaken for, or -1.
    """
    predicted = evaluation.predicted
    wrong = predicted[predicted["label"] != predicted["predicted"]]
    counts = (
        wrong.groupby(["label", "predicted"], sort=False).size().sort_values(ascending=False, kind="stable")
    )
    most = counts.reset_index().drop_duplicates("label").set_index("label")["predicted"]
    table = _table(evaluation, "per_class")
    return table.assign(taken_for=table["label"].map(most).fillna(-1).astype("int64"))


def class_rows(evaluation: StoredEvaluation, table: pd.DataFrame, pictures: Pictures) -> list[Values]:
    """The rows of the table of classes that the page has; of many classes, the worst, then the best."""
    names, typical = table["class_name"].astype(str).tolist(), selection.most_typical(evaluation.predicted)
    if is_long(table):
        ranked = table[table["n"] > 0].sort_values(["accuracy", "n"], ascending=[True, False])
        table = pd.concat([ranked.head(ENDS_SHOWN), ranked.iloc[ENDS_SHOWN:].tail(ENDS_SHOWN)])
    rows = []
    for row in _records(table):
        name, other = str(row["class_name"]), int(row["taken_for"])
        picture = pictures.plain(typical[name], CLASS_PX) if name in typical else None
        taken_for = readable(names[other]) if other >= 0 else ""
        rows.append({**row, "name": readable(name), "picture": picture, "taken_for": taken_for})
    return rows


def is_long(table: pd.DataFrame) -> bool:
    """Whether the table of classes is too long for a page: its script then shows parts of it."""
    return len(table) > MANY_CLASSES


def class_numbers(table: pd.DataFrame) -> list[list[float | None]]:
    """The table of classes for the page's script, by label: `NUMBERS`, whose shares have four digits.

    A precision that does not exist is None; the numbers that a class without images lacks are -1.
    """
    shares = table[NUMBERS].round(4)
    shares[WITHOUT_IMAGES] = shares[WITHOUT_IMAGES].fillna(-1)
    return [[_short(value) for value in row] for row in shares.to_dict("split")["data"]]


def _short(value: float) -> float | None:
    if pd.isna(value):
        return None
    return int(value) if value == int(value) else value


def untaught(evaluation: StoredEvaluation) -> list[str]:
    """The classes without a training image: what the network says of them means nothing."""
    per_class = _table(evaluation, "per_class")
    return [readable(str(name)) for name in per_class.loc[per_class["train_images"] == 0, "class_name"]]


def confusion(evaluation: StoredEvaluation) -> Values:
    """The confusion matrix for the page's script.

    names: of the classes. cells: [true, predicted, count] where count is not 0. order: labels, so that similar
    classes are neighbours. largest: the largest count off the diagonal.
    """
    placed = _table(evaluation, "class_order").sort_values("position")
    names = [readable(str(name)) for name in placed.sort_values("label")["class_name"]]
    cells = confused.cells(evaluation.predicted)[["label", "predicted", "images"]].to_numpy("int64")
    largest = int(cells[cells[:, 0] != cells[:, 1], 2].max(initial=0))
    order = placed["label"]
    return {"names": names, "cells": cells.tolist(), "order": order.tolist(), "largest": largest}


def pairs(evaluation: StoredEvaluation, explained: Explained, pictures: Pictures) -> list[Values]:
    """The most confused pairs, with attributes, pictures and neighbours."""
    root = prepare.find_root(evaluation.config.data)
    names = _table(evaluation, "per_class")["class_name"].astype(str).tolist()
    attributes = annotations.attributes(root, names) if root else None
    rows = []
    for pair in evaluation.pairs.head(evaluation.config.report.pairs).itertuples():
        a, b = str(pair.class_a), str(pair.class_b)
        differing = None if attributes is None else annotations.differing(attributes, a, b, ATTRIBUTES_SHOWN)
        rows.append(
            {
                "labels": sorted((names.index(a), names.index(b))),
                "a": readable(a),
                "b": readable(b),
                "images": pair.images,
                "a_as_b": pair.a_as_b,
                "b_as_a": pair.b_as_a,
                "attributes": None if differing is None else attribute_rows(differing),
                "sides": [
                    _side(evaluation, explained, pictures, a, b),
                    _side(evaluation, explained, pictures, b, a),
                ],
            }
        )
    return rows


def gallery(evaluation: StoredEvaluation, explained: Explained, pictures: Pictures) -> list[Values]:
    """The worst errors."""
    worst = selection.worst(evaluation.predicted, evaluation.config.report.gallery)
    return [_figure(row, explained, pictures) for row in _records(worst)]


def _side(
    evaluation: StoredEvaluation, explained: Explained, pictures: Pictures, name: str, other: str
) -> Values:
    predicted = evaluation.predicted
    mistaken = selection.mistaken(predicted, name, other)
    shown = [
        {**_figure(row, explained, pictures), "nearest": _nearest(int(row["id"]), explained, pictures)}
        for row in _records(mistaken)
    ]
    of_class = predicted[predicted["class_name"] == name]
    return {
        "name": readable(name),
        "other": readable(other),
        "n": len(of_class),
        "correct": int((of_class["label"] == of_class["predicted"]).sum()),
        "typical": [pictures.plain(int(image)) for image in selection.typical(predicted, name)["id"]],
        "mistaken": shown,
        "count": int((of_class["predicted_name"] == other).sum()),
    }


def _figure(row: Mapping[str, Any], explained: Explained, pictures: Pictures) -> Values:
    image = int(row["id"])
    grid = explained.maps.get(image)
    return {
        "id": image,
        "path": row["path"],
        "name": readable(str(row["class_name"])),
        "predicted": readable(str(row["predicted_name"])),
        "confidence": float(row["confidence"]),
        "probability": float(row["probability"]),
        "rank": int(row["rank"]),
        "picture": pictures.plain(image),
        "heat": None if grid is None else pictures.heated(image, grid),
    }


def _nearest(image: int, explained: Explained, pictures: Pictures) -> list[Values]:
    if explained.nearest is None:
        return []
    near = explained.nearest[explained.nearest["id"] == image]
    return [
        {
            "picture": pictures.plain(int(row["train_id"]), CLASS_PX),
            "name": readable(str(row["train_class_name"])),
            "similarity": float(row["similarity"]),
        }
        for row in _records(near)
    ]


def attribute_rows(differing: pd.DataFrame) -> list[Values]:
    """`has_bill_shape::hooked_seabird` -> `bill shape: hooked seabird`."""
    rows = []
    for row in _records(differing):
        name = str(row["attribute"]).removeprefix("has_").replace("::", ": ").replace("_", " ")
        rows.append({"name": name, "a": float(row["a"]), "b": float(row["b"])})
    return rows


def embedding(evaluation: StoredEvaluation, explained: Explained) -> list[list[int]]:
    """The map of the images for the page's script: x and y in 0..1000, label, predicted."""
    if explained.embedding is None or explained.embedding.empty:
        return []
    places = explained.embedding.merge(evaluation.predicted, on="id", validate="one_to_one")
    xy = (places[["x", "y"]] * 1000).round().astype(int)
    columns = [xy["x"], xy["y"], places["label"], places["predicted"]]
    rows: list[list[int]] = np.stack([column.to_numpy("int64") for column in columns], axis=1).tolist()
    return rows


def plots(evaluation: StoredEvaluation) -> dict[str, str]:
    """The SVG plots by name; empty where a stored table is missing or has too few different values."""
    svg = {"training": training(evaluation), "training_images": ""}
    drawings: dict[Table, Callable[[pd.DataFrame], str]] = {
        "reliability": figures.reliability,
        "coverage": figures.coverage,
    }
    for name, draw in drawings.items():
        is_stored = evaluation.folder.table(name).is_file()
        svg[name] = draw(_table(evaluation, name)) if is_stored else ""
    per_class = _table(evaluation, "per_class")
    if per_class["train_images"].nunique() > 2:
        svg["training_images"] = figures.accuracy_by_training_images(per_class)
    return svg


def audit(evaluation: StoredEvaluation, pictures: Pictures) -> Values:
    """The results of an audit of the data, as far as they are stored."""
    values: Values = {}
    folder, ids = evaluation.folder.audit, set(evaluation.data.samples["id"])
    if folder.label_errors_file.is_file():
        table = _audit_table(folder, folder.label_errors_file, LABEL_ERRORS)
        values["label_errors_n"] = len(table)
        values["label_errors"] = [
            {
                "path": row["path"],
                "split": row["split"],
                "name": readable(str(row["class_name"])),
                "suggested": readable(str(row["suggested_name"])),
                "picture": pictures.plain(int(row["id"]), CLASS_PX * 2),
            }
            for row in _records(table[table["id"].isin(ids)].head(AUDIT_SHOWN))
        ]
    if folder.duplicates_file.is_file():
        table = _audit_table(folder, folder.duplicates_file, DUPLICATES)
        values["duplicates_n"] = len(table)
        values["across_n"] = int((table["split_a"] != table["split_b"]).sum())
        table = table[table["id_a"].isin(ids) & table["id_b"].isin(ids)]
        values["duplicates"] = [
            {
                "similarity": float(row["feature_similarity"]),
                "sides": [
                    {
                        "path": row[f"path_{side}"],
                        "split": row[f"split_{side}"],
                        "name": readable(str(row[f"class_{side}"])),
                        "picture": pictures.plain(int(row[f"id_{side}"]), CLASS_PX * 2),
                    }
                    for side in "ab"
                ],
            }
            for row in _records(table.head(AUDIT_SHOWN))
        ]
    return values


def _audit_table(folder: AuditDirectory, path: Path, types: Types) -> pd.DataFrame:
    """A table of an audit, whole: its summary says how many rows it has."""
    table = tables.read_csv(path, types, AUDIT_AGAIN)
    if folder.summary_file.is_file():
        rows = files.read_json(folder.summary_file, dict[str, Any], AUDIT_AGAIN).get(path.stem)
        if rows != len(table):
            raise DataError(f"{path}: damaged: {len(table)} rows, but the audit found {rows}; {AUDIT_AGAIN}")
    return table


def origin(run: RunDirectory, model: str) -> Values:
    """Configuration, environment, first weights, and the commands that reproduce the evaluation."""
    values: Values = dict.fromkeys(
        ("config", "environment", "weights", "licence", "commands", "commit", "dirty")
    )
    if run.config_file.is_file():
        values["config"] = files.read_text(run.config_file)
    if run.environment_file.is_file():
        environment = run.read_environment()
        values["environment"] = environment
        if weights := environment.get("weights"):
            values |= {"weights": Path(str(weights["source"])).name, "licence": licence_of(model, weights)}
        arguments = [str(argument) for argument in environment.get("command", [])]
        if "train" in arguments:
            rest = shlex.join(arguments[arguments.index("train") + 1 :])
            verbs = ("data", "train", "eval")
            values["commands"] = [f"plumage {verb} {rest}".rstrip() for verb in verbs]
        git = environment.get("git")
        values["commit"] = git and git["commit"]
        values["dirty"] = bool(git and git["dirty"])
    return values


def _records(rows: pd.DataFrame) -> list[Values]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def _table(evaluation: StoredEvaluation, name: Table) -> pd.DataFrame:
    return tables.read_csv(evaluation.folder.table(name))
