"""The data audit: likely label errors and near-duplicates, by the features of a trained model.

It covers all splits. The labels of test are read to find faults in the data; no accuracy on test is computed and
nothing is chosen by it, so an audit does not count as a reading of the test split. Whoever corrects test labels
has another test set, and must say so.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from pipeline.audit import decisions, duplicates, label_errors
from pipeline.common import console, files, tables
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.distributed import consistency, process_group
from pipeline.evaluation import evaluation_lock, training_state
from pipeline.inference import features, load_model
from pipeline.report import page
from pipeline.runs.directory import AuditDirectory, ProbeDirectory, RunDirectory

SHOWN = 10
PICTURES = 500  # pairs with a picture, the most similar ones


def audit_data(config: Config) -> dict[str, Any]:
    """Look for likely label errors and near-duplicates; write tables, pictures and the returned summary.

    Raises:
        UserError: the checkpoint or the data are missing, or do not belong together.
    """
    config = config.at_evaluation
    training_state.await_end(config)
    with process_group.join(config.train, config.distributed.timeout_s) as ranks:
        if ranks.is_main:
            training_state.check_is_over(config)
        data = prepare.load(config)
        consistency.check_ranks_agree(config, sample_table.digest(data.samples), ranks)
        model = load_model.load_model(config, data.samples, load_model.checkpoint_path(config), ranks)
        evaluation = RunDirectory(config.run_dir).evaluation(config.eval.split)
        with evaluation_lock.held(evaluation) if ranks.is_main else nullcontext():
            before = decisions.earlier(evaluation.audit.corrections_file, config.data)
            features_of_all = _features(config, data, model, ranks)
            if not ranks.is_main:
                return {}
            of_probe = _features_of_probe(config, data)
            views = [features_of_all] if of_probe is None else [features_of_all, of_probe[0]]
            errors = label_errors.likely_errors(data.samples, *views)
            doubles = duplicates.pairs(data.samples, duplicates.hashes(data.store), features_of_all)
            result = {
                "images": len(data.samples),
                "checkpoint": str(model.path),
                "checkpoint_sha256": model.sha256,
                **({} if of_probe is None else {"probe_weights": of_probe[1]}),
                **summary(errors, doubles),
            }
            to_decide = decisions.to_decide(errors, data.samples, before)
            _write(evaluation.audit, errors, to_decide, doubles, result, data)
        if config.report.write and evaluation.metrics_file.is_file():
            page.build(config, evaluation)
        _show(errors, doubles, result)
        if result["leaked_test_images"]:
            console.say(
                f"audit  a score without them: `eval` or `report` with eval.labels=[{evaluation.audit.leaked_file}]"
            )
        console.say(
            f"audit  {evaluation.audit.path}; decide in {evaluation.audit.corrections_file.name} (column decision: "
            "a class, or drop), and give it to `plumage data` as data.corrections"
        )
        return result


def _write(
    audit: AuditDirectory,
    errors: pd.DataFrame,
    to_decide: pd.DataFrame,
    doubles: pd.DataFrame,
    result: Mapping[str, Any],
    data: prepare.Prepared,
) -> None:
    with files.replacing_folder(audit.path) as part:
        folder = AuditDirectory(part)
        tables.write_csv(errors, folder.label_errors_file)
        tables.write_csv(to_decide, folder.corrections_file)
        tables.write_csv(doubles, folder.duplicates_file)
        tables.write_csv(duplicates.leaked(doubles), folder.leaked_file)
        shown = doubles.head(PICTURES)
        duplicates.write_pictures(shown, data.samples["id"].tolist(), data.store, folder.pairs)
        files.write_json(folder.summary_file, result)


def _features(
    config: Config, data: prepare.Prepared, model: load_model.LoadedModel, ranks: process_group.Ranks
) -> features.Features:
    """The features of all images in the order of the sample table, float32 [n, D]; cached in the run directory."""
    features_by_split = {
        split: features.cached(config, data, model.network, split, model.precision, ranks, model.sha256)
        for split in sample_table.SPLITS
        if data.rows(split)
    }
    rows = np.concatenate([data.rows(split) for split in features_by_split])
    return np.concatenate(list(features_by_split.values()))[np.argsort(rows)]


class _Probe(BaseModel):
    """What is read of probe.json. weights: where those of its backbone are from."""

    weights: str


def _features_of_probe(config: Config, data: prepare.Prepared) -> tuple[features.Features, str] | None:
    """The features that `probe` has kept of the same images, float32 [n, D], and where its weights are from.

    They have not seen the labels. None: there are none, or they are of random weights.
    """
    folder = ProbeDirectory(RunDirectory(config.run_dir).probe_folder)
    if not folder.summary_file.is_file():
        return None
    weights = files.read_json(folder.summary_file, _Probe, "run `plumage probe` again").weights
    ids, crops = data.samples["id"].to_numpy("int64"), features.digest_of_crops(config, data)
    found = features.read_cache(folder.features_file, None, crops, ids)
    return None if found is None or weights == "random" else (found, weights)


def summary(errors: pd.DataFrame, doubles: pd.DataFrame) -> dict[str, Any]:
    """Counts of label errors, in all and by split; of pairs of duplicates, in all and by splits; of leaked test images.

    A test image is leaked when a near-duplicate of it is in train or in validation.
    """
    sides = [
        tuple(sorted(pair, key=sample_table.SPLITS.index))
        for pair in zip(doubles["split_a"], doubles["split_b"], strict=True)
    ]
    where = pd.Series([a if a == b else f"{a}-{b}" for a, b in sides], dtype=object).value_counts()
    return {
        "label_errors": len(errors),
        "label_errors_by_split": _counts(errors["split"].value_counts()),
        "duplicates": len(doubles),
        "duplicates_by_splits": _counts(where),
        "duplicates_of_two_classes": int((doubles["class_a"] != doubles["class_b"]).sum()),
        "leaked_test_images": len(duplicates.leaked(doubles)),
    }


def _counts(counted: "pd.Series[int]") -> dict[str, int]:
    return {str(name): int(count) for name, count in counted.sort_index().items()}


def _show(errors: pd.DataFrame, doubles: pd.DataFrame, result: dict[str, Any]) -> None:
    if len(errors):
        console.show_table(
            "most doubtful labels",
            ["image", "split", "listed as", "neighbours say", "score"],
            errors.head(SHOWN)[["path", "split", "class_name", "suggested_name", "score"]].itertuples(
                index=False
            ),
        )
    if len(doubles):
        console.show_table(
            "most alike pairs",
            ["image a", "split a", "image b", "split b", "bits", "cosine"],
            doubles.head(SHOWN)[
                ["path_a", "split_a", "path_b", "split_b", "hash_distance", "feature_similarity"]
            ].itertuples(index=False),
        )
    if "probe_weights" in result:
        console.say(
            f"label errors by votes of the trained features and of those of probe ({result['probe_weights']})"
        )
    console.say(
        f"{result['images']:,} images: {result['label_errors']} likely label errors {result['label_errors_by_split']}, "
        f"{result['duplicates']} pairs of near-duplicates {result['duplicates_by_splits']}\n"
        f"  {result['leaked_test_images']} test images have a near-duplicate in train or validation"
    )
