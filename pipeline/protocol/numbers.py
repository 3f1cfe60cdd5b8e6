"""Every number of an evaluation, computed again from the stored logits: predictions, metrics, tables, thresholds."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from pipeline.common import arrays, files, tables
from pipeline.common.errors import DataError, name_some
from pipeline.config.schema import Config
from pipeline.data import sample_table, taxonomy
from pipeline.data.prepare import Prepared
from pipeline.evaluation import metrics, results
from pipeline.protocol import differing
from pipeline.protocol.claims import Claim
from pipeline.runs import predictions
from pipeline.runs.directory import EvaluationDirectory, RunDirectory, Table

KEYS: dict[Table, tuple[str, ...]] = {
    "per_class": ("class_name",),
    "confusion": ("class_name",),
    "confused_pairs": ("class_a", "class_b"),
    "class_order": ("class_name",),
    "reliability": ("low",),
    "coverage": ("coverage",),
}


def check(config: Config, data: Prepared, folder: EvaluationDirectory) -> Claim:
    """Whether the files of an evaluation hold what follows from its logits and the labels of the data."""
    about = f"numbers of {folder.split}"
    if not folder.outputs_file.is_file():
        return Claim.unchecked(about, f"{folder.outputs_file}: not here, and the numbers follow from it")
    try:
        faults = list(_faults(config, data, folder))
    except DataError as error:
        return Claim(about, "fails", [str(error)])
    compared = (
        "predictions.csv, metrics.json, thresholds.json and all tables, computed again from the stored logits"
    )
    return Claim.of(about, faults, compared)


def _faults(config: Config, data: Prepared, folder: EvaluationDirectory) -> Iterator[str]:
    names = sample_table.class_names(data.samples)
    ids, logits = arrays.read_npz(folder.outputs_file, ["id", "logits"], predictions.AGAIN)
    split = data.samples[data.samples["split"] == folder.split].set_index("id", drop=False)
    if set(ids.tolist()) != set(split["id"]) or logits.shape != (len(ids), len(names)):
        yield f"{folder.outputs_file.name}: holds other images or classes than the {folder.split} split"
        return
    yield from _of_validation(folder, data)
    table = metrics.predictions_table(split.loc[ids], logits, names)
    yield from _of_table(folder.predictions_file, table, ("id",))
    stored = predictions.read_metrics(folder)
    with tempfile.TemporaryDirectory() as temporary:
        again = EvaluationDirectory(Path(temporary) / folder.split)
        _lay_out(folder, again, table)
        origin = {key: stored[key] for key in results.ORIGIN if key in stored}
        origin |= {"split": folder.split, "classes": len(names)}
        found, found_tables = results.compute_metrics(
            again, data.samples, results.learned_rows(config, data), origin, _taxonomy(config, names)
        )
        yield from (f"{folder.metrics_file.name}: {fault}" for fault in differing.values(stored, found))
        for name in get_args(Table):
            if folder.table(name).is_file():
                yield from _of_table(folder.table(name), found_tables[name], _key(name, found_tables[name]))
        yield from _of_thresholds(folder, again)


def _of_validation(folder: EvaluationDirectory, data: Prepared) -> Iterator[str]:
    """Whether the labels that a temperature is fitted on are those of the data."""
    path, rows = folder.validation_file, data.rows("val")
    if not path.is_file():
        return
    (label,) = arrays.read_npz(path, ["label"], predictions.AGAIN)
    if label.shape != (len(rows),):
        yield f"{path.name}: holds other images than the val split"
    elif len(others := data.samples["id"].to_numpy()[rows][label != data.labels[rows]]):
        yield f"{path.name}: other labels than in the data for image ids {name_some(others)}"


def _lay_out(folder: EvaluationDirectory, again: EvaluationDirectory, table: pd.DataFrame) -> None:
    """What metrics are computed from: the predictions as they follow from the logits, and the rest as it is stored."""
    again.path.mkdir()
    tables.write_csv(table, again.predictions_file)
    again.outputs_file.symlink_to(folder.outputs_file.resolve())
    if folder.validation_file.is_file():
        again.validation_file.symlink_to(folder.validation_file.resolve())
    for path in folder.label_sets():
        target = again.label_set(path.stem)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def _taxonomy(config: Config, names: list[str]) -> taxonomy.Taxonomy | None:
    path = RunDirectory(config.run_dir).taxonomy_file
    return taxonomy.read(path, names) if path.is_file() else None


def _key(name: Table, found: pd.DataFrame) -> tuple[str, ...]:
    return tuple(column for column in KEYS[name] if column in found.columns) or (str(found.columns[0]),)


def _of_table(path: Path, found: pd.DataFrame, key: tuple[str, ...]) -> Iterator[str]:
    """Differences of a table of the evaluation and the one that was found, which is written and read as it was."""
    if not path.is_file():
        yield f"{path.name}: missing"
        return
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / path.name
        tables.write_csv(found, written)
        read = tables.read_csv(written)
    yield from (f"{path.name}: {fault}" for fault in differing.tables(tables.read_csv(path), read, key))


def _of_thresholds(folder: EvaluationDirectory, again: EvaluationDirectory) -> Iterator[str]:
    if folder.thresholds_file.is_file() and again.thresholds_file.is_file():
        stored, found = (
            files.read_json(each.thresholds_file, dict[str, Any], predictions.AGAIN)
            for each in (folder, again)
        )
        yield from (f"{folder.thresholds_file.name}: {fault}" for fault in differing.values(stored, found))
