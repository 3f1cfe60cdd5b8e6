"""The data audit: what a trained model's features say of the data set itself.

Of all splits, test too: its labels are read here to find faults in the data. No accuracy on it is
computed and nothing is chosen by it, so this counts as no reading of the test split. Whoever mends
test labels has another test set, and has to say so.

    RUN/eval/SPLIT/audit/label_errors.csv, duplicates.csv, pairs/ID-ID.jpg, summary.json
"""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.audit import duplicates, label_errors
from pipeline.common import console, files, tables
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.distributed import consistency, process_group
from pipeline.inference import features, load_model
from pipeline.report import page
from pipeline.runs import predictions

SHOWN = 10
PICTURES = 500  # pairs of which a picture is written, the most alike ones


def audit(config: Config) -> dict[str, Any]:
    """Look for likely label errors and near-duplicates; write tables, pictures and the returned summary.

    Raises:
        UserError: the checkpoint or the data are missing, or do not belong together.
    """
    with process_group.join(config.train.device, config.distributed.timeout_s) as ranks:
        data = prepare.load(config)
        consistency.check_ranks_agree(config, sample_table.digest(data.samples), ranks)
        model = load_model.load_model(config, data.samples, load_model.checkpoint_path(config), ranks)
        known = _features(config, data, model, ranks)
        if not ranks.is_main:
            return {}
        errors = label_errors.likely_errors(data.samples, known)
        doubles = duplicates.pairs(data.samples, duplicates.hashes(data.store), known)
        found = {
            "images": len(data.samples),
            "checkpoint": str(model.path),
            "checkpoint_sha256": model.sha256,
            **summary(errors, doubles),
        }
        folder = predictions.folder_of(config.run_dir, config.eval.split) / "audit"
        with files.replacing_folder(folder) as part:
            tables.write_csv(errors, part / "label_errors.csv")
            tables.write_csv(doubles, part / "duplicates.csv")
            duplicates.write_pictures(
                doubles.head(PICTURES), data.samples["id"].tolist(), data.store, part / "pairs"
            )
            files.write_json(part / "summary.json", found)
        if config.report.write and (folder.parent / "metrics.json").is_file():
            page.build(config, folder.parent)
        _show(errors, doubles, found)
        console.say(f"audit  {folder}")
        return found


def _features(
    config: Config, data: prepare.Prepared, model: load_model.LoadedModel, ranks: process_group.Ranks
) -> features.Features:
    """The features of all images in the order of the sample table, float32 [n, D]; kept for the next time."""
    of_split = {
        split: features.cached(config, data, model.model, split, model.precision, ranks, model.sha256)
        for split in sample_table.SPLITS
        if data.rows(split)
    }
    rows = np.concatenate([data.rows(split) for split in of_split])
    return np.concatenate(list(of_split.values()))[np.argsort(rows)]


def summary(errors: pd.DataFrame, doubles: pd.DataFrame) -> dict[str, Any]:
    """Counts: label_errors, by split; duplicates (pairs), within and across splits; leaked_test_images.

    A test image is leaked when a near-duplicate of it is in train or in validation.
    """
    sides = [
        tuple(sorted(pair, key=sample_table.SPLITS.index))
        for pair in zip(doubles["split_a"], doubles["split_b"], strict=True)
    ]
    where = pd.Series([a if a == b else f"{a}-{b}" for a, b in sides], dtype=object).value_counts()
    leaked = set()
    for mine, other in (("a", "b"), ("b", "a")):
        across = (doubles[f"split_{mine}"] == "test") & (doubles[f"split_{other}"] != "test")
        leaked |= set(doubles.loc[across, f"id_{mine}"])
    return {
        "label_errors": len(errors),
        "label_errors_by_split": _counts(errors["split"].value_counts()),
        "duplicates": len(doubles),
        "duplicates_by_splits": _counts(where),
        "duplicates_of_two_classes": int((doubles["class_a"] != doubles["class_b"]).sum()),
        "leaked_test_images": len(leaked),
    }


def _counts(counted: "pd.Series[int]") -> dict[str, int]:
    return {str(name): int(count) for name, count in counted.sort_index().items()}


def _show(errors: pd.DataFrame, doubles: pd.DataFrame, found: dict[str, Any]) -> None:
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
    console.say(
        f"{found['images']:,} images: {found['label_errors']} likely label errors {found['label_errors_by_split']}, "
        f"{found['duplicates']} pairs of near-duplicates {found['duplicates_by_splits']}\n"
        f"  {found['leaked_test_images']} test images have a near-duplicate in train or validation"
    )
