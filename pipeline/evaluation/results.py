"""Stored predictions become tables and numbers; the model is not needed.

Read: predictions.csv, outputs.npz and, where there is one, validation.npz of RUN/eval/SPLIT, and the
sample table. Written beside them: metrics.json, per_class.csv, confusion.csv, confused_pairs.csv,
class_order.csv, reliability.csv and coverage.csv.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.common import files
from pipeline.common.tables import write_csv
from pipeline.data import sample_table
from pipeline.evaluation import calibration, confusion, metrics, statistics
from pipeline.runs import predictions

# What metrics.json holds that does not follow from the predictions: where they are from.
ORIGIN = (
    "split",
    "run",
    "checkpoint",
    "checkpoint_sha256",
    "epoch",
    "step",
    "classes",
    "tta",
    "test_reads",
    "peek_gap",
)


def compute_metrics(
    folder: Path, samples: pd.DataFrame, origin: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Compute everything from stored predictions and write it beside them.

    Returns the content of metrics.json, and the tables by their files' names.

    Args:
        folder: RUN/eval/SPLIT.
        samples: the whole sample table.
        origin: values of `ORIGIN`; None takes those of the metrics.json that is there.

    Raises:
        DataError: stored files are missing, damaged, or do not fit each other or the sample table.
    """
    if origin is None:
        before = predictions.read_metrics(folder)
        origin = {key: before[key] for key in ORIGIN if key in before}
    names = sample_table.class_names(samples)
    predicted = predictions.read_predictions(folder, names)
    predictions.check_against(
        predicted, samples[samples["split"] == origin["split"]], folder / "predictions.csv"
    )
    outputs = predictions.read_outputs(folder, predicted, len(names))
    train = samples.loc[samples["split"] == "train", "label"].value_counts()
    classes = metrics.per_class(predicted, names, train.reindex(range(len(names)), fill_value=0).tolist())
    calibrated, bins, curve = _confidence(predicted, outputs, predictions.read_validation(folder, len(names)))
    found = {
        **origin,
        **metrics.summary(predicted),
        **calibrated,
        **metrics.accuracy_by_training_count(classes),
    }
    tables = {
        "per_class": classes,
        "confusion": confusion.counts(predicted, names).reset_index(),
        "confused_pairs": confusion.pairs(predicted),
        "class_order": confusion.order(outputs.logits, predicted["label"].to_numpy(), names),
        "reliability": bins,
        "coverage": curve,
    }
    for name, content in tables.items():
        write_csv(content, folder / f"{name}.csv")
    files.write_json(folder / "metrics.json", found)
    return found, tables


def _confidence(
    predicted: pd.DataFrame, outputs: predictions.Outputs, validation: predictions.Validation | None
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Numbers of calibration and selective prediction; the tables of reliability and of coverage.

    With validation images, a temperature is fitted on them and NAME_scaled is what it makes of this split.
    """
    labels = predicted["label"].to_numpy()
    log_probability = calibration.log_probabilities(outputs.logits)
    confidence, correct = calibration.confidence_and_correct(log_probability, labels)
    bins = calibration.reliability(confidence, correct)
    brier = calibration.brier(log_probability, labels)
    ((low, high),) = statistics.of_means(brier[:, None])
    found: dict[str, Any] = {
        "brier": float(brier.mean()),
        "brier_low": low,
        "brier_high": high,
        "ece": calibration.expected_error(bins),
        "aurc": calibration.area_under_risk(confidence, correct),
        "top1_at_80_coverage": calibration.accuracy_at_coverage(confidence, correct, 0.8),
        "temperature": None,
    }
    if validation is not None:
        scaled, after = _scaled(outputs, labels, validation)
        found |= scaled
        bins = pd.concat([bins, after], axis=1)
    return found, bins, calibration.coverage(confidence, correct)


def _scaled(
    outputs: predictions.Outputs, labels: calibration.Labels, validation: predictions.Validation
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Numbers and bins of reliability after the temperature that fits the validation images best."""
    temperature = calibration.fit_temperature(validation.logits, validation.label)
    scaled = calibration.log_probabilities(outputs.logits, temperature)
    bins_scaled = calibration.reliability(*calibration.confidence_and_correct(scaled, labels))
    found = {
        "temperature": temperature,
        "temperature_images": len(validation.label),
        "temperature_at_bound": calibration.at_bound(temperature),
        "nll_scaled": float(calibration.nll(scaled, labels).mean()),
        "brier_scaled": float(calibration.brier(scaled, labels).mean()),
        "ece_scaled": calibration.expected_error(bins_scaled),
    }
    after = bins_scaled[["n", "confidence", "accuracy"]].add_suffix("_scaled")
    return found, after
