"""Metrics and tables from stored predictions; the model is not needed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import arrays, files
from pipeline.common.errors import DataError
from pipeline.common.tables import write_csv
from pipeline.config.load import completed, flatten, read_tree, validate_tree
from pipeline.config.schema import Config
from pipeline.data import sample_table
from pipeline.data.prepare import Prepared
from pipeline.data.taxonomy import Taxonomy
from pipeline.evaluation import (
    calibration,
    confusion,
    label_sets,
    metrics,
    mistake_severity,
    prediction_sets,
    statistics,
    thresholds,
)
from pipeline.runs import predictions
from pipeline.runs.directory import EvaluationDirectory, RunDirectory, Table

# The keys of metrics.json that are not computed from the predictions: where these come from.
ALWAYS = ("split", "run", "checkpoint", "checkpoint_sha256", "epoch", "step", "classes")
ORIGIN = (
    *(*ALWAYS[:6], "training", "refit", "classes"),
    *("tta", "image_px", "resize_px", "test_reads", "protocol", "peek_gap"),
)


def compute_metrics(
    folder: EvaluationDirectory,
    samples: pd.DataFrame,
    training_rows: npt.NDArray[np.int64],
    origin: Mapping[str, Any] | None = None,
    taxonomy: Taxonomy | None = None,
) -> tuple[dict[str, Any], dict[Table, pd.DataFrame]]:
    """Compute metrics, tables and thresholds from stored predictions and write them beside these.

    Returns the content of metrics.json, and the tables by name.

    Args:
        samples: the whole sample table.
        training_rows: int64, the rows of it that the run learned from.
        origin: values of `ORIGIN`; None takes those of the metrics.json that is there.
        taxonomy: of the classes, for the thresholds of its ranks and the severity of mistakes.

    Raises:
        DataError: stored files are missing, damaged, or do not fit each other or the sample table.
    """
    origin = _origin_of_before(folder) if origin is None else origin
    names = sample_table.class_names(samples)
    stored = predictions.StoredPredictions.read(folder, samples)
    train_images = np.bincount(samples["label"].to_numpy("int64")[training_rows], minlength=len(names))
    per_class = metrics.per_class(stored.table, names, train_images.tolist())
    confidence_metrics, reliability, coverage = _confidence(stored)
    metrics_json = {
        **origin,
        **metrics.summary(stored.table),
        **_ties(stored.logits),
        **confidence_metrics,
        **metrics.accuracy_by_training_count(per_class),
        **_otherwise(stored, folder, taxonomy),
    }
    tables: dict[Table, pd.DataFrame] = {
        "per_class": per_class,
        "confusion": confusion.table(stored.table, names),
        "confused_pairs": confusion.pairs(stored.table),
        "class_order": confusion.order(stored.logits, stored.table["label"].to_numpy(), names),
        "reliability": reliability,
        "coverage": coverage,
    }
    for name, table in tables.items():
        write_csv(table, folder.table(name))
    thresholds.write(folder, stored.validation, metrics_json, names, taxonomy)
    files.write_json(folder.metrics_file, metrics_json)
    return metrics_json, tables


def _origin_of_before(folder: EvaluationDirectory) -> dict[str, Any]:
    """The values of `ORIGIN` in the metrics.json that is there."""
    before = predictions.read_metrics(folder)
    if missing := [key for key in ALWAYS if key not in before]:
        raise DataError(f"{folder.metrics_file}: the keys {missing} are missing; {predictions.AGAIN}")
    return {key: before[key] for key in ORIGIN if key in before}


def _otherwise(
    stored: predictions.StoredPredictions, folder: EvaluationDirectory, taxonomy: Taxonomy | None
) -> dict[str, Any]:
    """The same predictions as sets of classes, in a hierarchy, by other labels: what there is of these."""
    found: dict[str, Any] = {}
    if stored.validation is not None:
        labels = stored.table["label"].to_numpy()
        found["prediction_sets"] = prediction_sets.summary(stored.logits, labels, stored.validation)
    if taxonomy is not None:
        found["mistakes"] = mistake_severity.summary(stored.table, taxonomy)
    if by_label_set := label_sets.summaries(folder, stored.table):
        found["label_sets"] = by_label_set
    return found


def _ties(logits: npt.NDArray[np.float32]) -> dict[str, int]:
    """`ties`: images with more than one class in first place, where there are any; the lowest label counts."""
    ties = 0
    for _, block in arrays.blocks(logits):
        in_first_place = (block == block.max(axis=1, keepdims=True)).sum(axis=1)
        ties += int((in_first_place > 1).sum())
    return {"ties": ties} if ties else {}


def config_of(config: Config, metrics: Mapping[str, Any]) -> Config:
    """The configuration of a stored evaluation: with the views that it had, whatever the configuration says now.

    Args:
        metrics: the content of its metrics.json.
    """
    own = {"tta": metrics.get("tta", "none"), "image_px": metrics.get("image_px")}
    data = config.data.model_copy(update={"resize_px": metrics.get("resize_px", config.data.resize_px)})
    update = {"eval": config.eval.model_copy(update=own), "data": data}
    return config.model_copy(update=update).at_evaluation


def learned_rows(config: Config, data: Prepared) -> npt.NDArray[np.int64]:
    """The rows of the sample table that a run learned from: `train.subset` and `seed` are those of its own config.yaml.

    An evaluation need not repeat them; without a config.yaml they are those of `config`.
    """
    path = RunDirectory(config.run_dir).config_file
    if path.is_file():
        settings = dict(flatten(completed(read_tree(path))))
        drawn_by = {"seed": settings["seed"], "train": {"subset": settings.get("train.subset", 1)}}
        own = validate_tree(drawn_by, str(path), Config)
        train = config.train.model_copy(update={"subset": own.train.subset})
        config = config.model_copy(update={"seed": own.seed, "train": train})
    return data.training_rows(config)


def _confidence(
    stored: predictions.StoredPredictions,
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Metrics of calibration and selective prediction; the tables of reliability and of coverage.

    With validation images a temperature is fitted on them; NAME_scaled is computed after scaling by it.
    """
    labels = stored.table["label"].to_numpy()
    confidence, correct, _, brier = calibration.per_image(stored.logits, labels)
    bins = calibration.reliability(confidence, correct)
    ((low, high),) = statistics.mean_intervals(brier[:, None])
    values: dict[str, Any] = {
        "brier": float(brier.mean()),
        "brier_low": low,
        "brier_high": high,
        "ece": calibration.expected_error(bins),
        "aurc": calibration.area_under_risk(confidence, correct),
        "top1_at_80_coverage": calibration.accuracy_at_coverage(confidence, correct, 0.8),
        "temperature": None,
    }
    if stored.validation is not None:
        scaled_values, scaled_bins = _scaled(stored.logits, labels, stored.validation)
        values |= scaled_values
        bins = pd.concat([bins, scaled_bins], axis=1)
    return values, bins, calibration.coverage(confidence, correct)


def _scaled(
    logits: calibration.Logits, labels: calibration.Labels, validation: predictions.Validation
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Metrics and bins of reliability after the temperature that fits the validation images best."""
    temperature = calibration.fit_temperature(validation.logits, validation.label)
    confidence, correct, nll, brier = calibration.per_image(logits, labels, temperature)
    bins = calibration.reliability(confidence, correct)
    values = {
        "temperature": temperature,
        "temperature_images": len(validation.label),
        "temperature_at_bound": calibration.is_at_bound(temperature),
        "nll_scaled": float(nll.mean()),
        "brier_scaled": float(brier.mean()),
        "ece_scaled": calibration.expected_error(bins),
    }
    return values, bins[["n", "confidence", "accuracy"]].add_suffix("_scaled")
