"""What the page says: stored tables become plain values, in the words and figures a reader sees."""

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.common import files, tables
from pipeline.data import prepare
from pipeline.explain import annotations, selection
from pipeline.explain.explain import Explained, StoredEvaluation
from pipeline.report import figures
from pipeline.report.pictures import Pictures
from pipeline.runs.log import read_log

CLASS_PX = 72
ATTRIBUTES_SHOWN = 8
AUDIT_SHOWN = 24
Values = dict[str, Any]


def readable(name: str) -> str:
    """`001.Black_footed_Albatross` -> `Black footed Albatross`."""
    return re.sub(r"^\d+\.", "", name).replace("_", " ")


def percent(value: float | None, digits: int = 1) -> str:
    """0.8187 -> `81.9 %`, with a space that does not break; `–` for what is not there."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def interval(low: float, high: float, digits: int = 1) -> str:
    """0.788, 0.847 -> `78.8 to 84.7 %`."""
    return f"{100 * low:.{digits}f} to {percent(high, digits)}"


def training(evaluation: StoredEvaluation) -> str:
    """The curves of training as SVG, empty when the run has no log of an epoch."""
    found = read_log(evaluation.config.run_dir / "log.jsonl")
    return figures.curves(found, int(evaluation.about["epoch"]))


def classes(evaluation: StoredEvaluation, pictures: Pictures) -> list[Values]:
    """A row a class for the table, with the class it is most often taken for."""
    predicted = evaluation.predicted
    wrong = predicted[predicted["label"] != predicted["predicted"]]
    taken = wrong.groupby("class_name")["predicted_name"].agg(
        lambda names: str(names.value_counts().idxmax())
    )
    rows = []
    for one in _records(_table(evaluation, "per_class.csv")):
        name = str(one["class_name"])
        typical = selection.typical(predicted, name, 1)
        rows.append(
            {
                **one,
                "name": readable(name),
                "picture": pictures.plain(int(typical["id"].iloc[0]), CLASS_PX) if len(typical) else None,
                "taken_for": readable(str(taken[name])) if name in taken else "",
            }
        )
    return rows


def confusion(evaluation: StoredEvaluation) -> Values:
    """The confusion matrix for the page's script.

    names: of the classes. cells: [true, predicted, count] where count is not 0. order: labels, similar classes
    side by side. largest: the largest count of a confusion.
    """
    counts = _table(evaluation, "confusion.csv").set_index("class_name")
    matrix = counts.to_numpy("int64")
    rows, columns = matrix.nonzero()
    order = _table(evaluation, "class_order.csv").sort_values("position")["label"]
    cells = np.stack([rows, columns, matrix[rows, columns]], axis=1)
    names = [readable(str(name)) for name in counts.index]
    largest = int((matrix * (1 - np.eye(len(matrix), dtype=int))).max())
    return {"names": names, "cells": cells.tolist(), "order": order.tolist(), "largest": largest}


def pairs(evaluation: StoredEvaluation, explained: Explained, pictures: Pictures) -> list[Values]:
    """The most confused pairs, each with what its page shows."""
    root = prepare.find_root(evaluation.config.data)
    names = _table(evaluation, "per_class.csv")["class_name"].astype(str).tolist()
    known = annotations.attributes(root, names) if root else None
    found = []
    for pair in evaluation.pairs.head(evaluation.config.report.pairs).itertuples():
        a, b = str(pair.class_a), str(pair.class_b)
        differing = annotations.differing(known, a, b, ATTRIBUTES_SHOWN) if known is not None else None
        found.append(
            {
                "labels": sorted((names.index(a), names.index(b))),
                "a": readable(a),
                "b": readable(b),
                "images": pair.images,
                "a_as_b": pair.a_as_b,
                "b_as_a": pair.b_as_a,
                "attributes": None if differing is None else _attributes(differing),
                "sides": [
                    _side(evaluation, explained, pictures, a, b),
                    _side(evaluation, explained, pictures, b, a),
                ],
            }
        )
    return found


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
    own = predicted[predicted["class_name"] == name]
    return {
        "name": readable(name),
        "other": readable(other),
        "n": len(own),
        "correct": int((own["label"] == own["predicted"]).sum()),
        "typical": [pictures.plain(int(image)) for image in selection.typical(predicted, name)["id"]],
        "mistaken": shown,
        "count": int((own["predicted_name"] == other).sum()),
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


def _attributes(differing: pd.DataFrame) -> list[Values]:
    """`has_bill_shape::hooked_seabird` -> `bill shape: hooked seabird`."""
    rows = []
    for row in _records(differing):
        words = str(row["attribute"]).removeprefix("has_").replace("::", ": ").replace("_", " ")
        rows.append({"name": words, "a": float(row["a"]), "b": float(row["b"])})
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
    """The SVG plots by name; empty where a stored table is missing or says nothing."""
    found = {"training": training(evaluation), "training_images": ""}
    for name, draw in (("reliability", figures.reliability), ("coverage", figures.coverage)):
        there = (evaluation.folder / f"{name}.csv").is_file()
        found[name] = draw(_table(evaluation, f"{name}.csv")) if there else ""
    per_class = _table(evaluation, "per_class.csv")
    if per_class["train_images"].nunique() > 2:
        found["training_images"] = figures.accuracy_by_training_images(per_class)
    return found


def audit(evaluation: StoredEvaluation, pictures: Pictures) -> Values:
    """What an audit of the data has found, as far as there was one."""
    found: Values = {}
    labels, doubles = (evaluation.folder / "audit" / f"{name}.csv" for name in ("label_errors", "duplicates"))
    known = set(evaluation.data.samples["id"])
    if labels.is_file():
        table = _read(labels)
        found["label_errors_n"] = len(table)
        found["label_errors"] = [
            {
                "path": row["path"],
                "split": row["split"],
                "name": readable(str(row["class_name"])),
                "suggested": readable(str(row["suggested_name"])),
                "picture": pictures.plain(int(row["id"]), CLASS_PX * 2),
            }
            for row in _records(table[table["id"].isin(known)].head(AUDIT_SHOWN))
        ]
    if doubles.is_file():
        table = _read(doubles)
        found["duplicates_n"] = len(table)
        found["across_n"] = int((table["split_a"] != table["split_b"]).sum())
        table = table[table["id_a"].isin(known) & table["id_b"].isin(known)]
        found["duplicates"] = [
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
    return found


def origin(run_dir: Path) -> Values:
    """Configuration, environment, and the commands that make all of it again."""
    config, environment = run_dir / "config.yaml", run_dir / "environment.json"
    found: Values = dict.fromkeys(("config", "environment", "commands", "commit", "dirty"))
    found["config"] = config.read_text(encoding="utf-8") if config.is_file() else None
    if environment.is_file():
        about = files.read_json(environment)
        found["environment"] = about
        words = [str(word) for word in about.get("command", [])]
        if "train" in words:
            rest = shlex.join(words[words.index("train") + 1 :])
            verbs = ("data", "train", "eval")
            found["commands"] = [f"python -m pipeline {verb} {rest}".rstrip() for verb in verbs]
        git = about.get("git")
        found["commit"] = git and git["commit"]
        found["dirty"] = bool(git and git["dirty"])
    return found


def _records(rows: pd.DataFrame) -> list[Values]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def _table(evaluation: StoredEvaluation, name: str) -> pd.DataFrame:
    return _read(evaluation.folder / name)


def _read(path: Path) -> pd.DataFrame:
    """A stored table; a class may be called `NA`."""
    return tables.read_csv(path)
