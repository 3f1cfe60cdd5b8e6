"""The verb `unknown`: a threshold below which a picture is of none of the known classes, and what it promises.

Validation images set the threshold, and folds over the known classes say what it would do with unknown ones. Test
images and pictures of unknown classes choose nothing: what they show is measured after that.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.answering import unknown_scores
from pipeline.answering.unknown_scores import Name
from pipeline.answering.unknown_threshold import NONE_OF_THESE, UnknownThreshold
from pipeline.common import console, files
from pipeline.common.errors import DataError, name_some
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.distributed import consistency, process_group
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation import evaluation_lock, training_state
from pipeline.evaluation.evaluate import Evaluator
from pipeline.inference import features, load_model
from pipeline.inference.linear_head import Images
from pipeline.inference.load_model import LoadedModel
from pipeline.runs.directory import RunDirectory
from pipeline.unknown import folds, measures
from pipeline.unknown.measuring import Measured, Seen, of_pictures, stored_test

DEFAULT: Name = "rmds"
"""the one with the highest AUROC for each family of backbones that was measured: MobileNetV2, EfficientNet-Lite0"""


@dataclass(frozen=True)
class ThresholdOptions:
    """Options of `plumage unknown`.

    score: that the threshold is of. kept: the share of pictures of known classes to keep, 0..1. pictures: files and
    folders of unknown classes to measure on, see `picture_names.expand`.
    """

    score: Name = DEFAULT
    kept: float = 0.95
    pictures: Sequence[Path] = ()


def find_threshold(config: Config, options: ThresholdOptions) -> dict[str, Any]:
    """Find the threshold and write RUN/unknown; the content of unknown.json.

    Raises:
        UserError: the checkpoint or the data are missing or do not belong together, or there are too few classes or
            validation images.
    """
    config = config.at_evaluation
    training_state.await_end(config)
    with process_group.join(config.train, config.distributed.timeout_s) as ranks:
        if ranks.is_main:
            training_state.check_is_over(config)
        data = prepare.load(config)
        consistency.check_ranks_agree(config, sample_table.digest(data.samples), ranks)
        check(data.labels[data.rows("train")], data.labels[data.rows("val")], options.kept)
        model = load_model.load_model(config, data.samples, load_model.checkpoint_path(config), ranks)
        run = RunDirectory(config.run_dir)
        with evaluation_lock.held(run.evaluation("val")) if ranks.is_main else nullcontext():
            train, val = _outputs(config, data, model, ranks)
            if not ranks.is_main:
                return {}
            classes = int(data.labels.max()) + 1
            unknown, unreadable = of_pictures(config, model, options.pictures, classes, ranks)
            measured = Measured(val, stored_test(config, data, model), unknown)
            chosen, result = _find(config, options, model, train, measured)
            chosen.write(run.unknown_threshold_file)
            files.write_json(run.unknown_file, result)
    _show(result)
    console.say(
        f"unknown  {run.unknown_file.parent}; `predict` with this checkpoint answers `{NONE_OF_THESE}` below it"
    )
    if not unreadable:
        return result
    refused = [f"{one.path}: {one.reason}" for one in unreadable]
    console.fail(f"{name_some(refused)}; nothing was measured on these; give pictures that can be read")
    return result | {"refused": refused}


def check(train: measures.Ints, val: measures.Ints, kept: float) -> None:
    """Raise a `DataError` where the labels of training or validation images do not suffice for a promise."""
    classes, needed = len(np.unique(train)), measures.needed(kept)
    if classes < folds.FEWEST_CLASSES:
        raise DataError(
            f"unknown: the data have {classes} classes, but a promise needs {folds.FEWEST_CLASSES}, so that some can be "
            "left out; add classes of your own"
        )
    if len(val) < needed:
        raise DataError(
            f"unknown: there are {len(val)} validation images, but a threshold that keeps {kept:.1%} of the known needs "
            f"{needed}; hold out more with data.val_fraction and train again, or promise less with --keep"
        )
    if len(np.unique(val)) <= folds.most_left_out(classes):
        raise DataError(
            f"unknown: only {len(np.unique(val))} of {classes} classes have validation images; hold out some of each "
            "with data.val_fraction and train again"
        )


def _outputs(config: Config, data: prepare.Prepared, model: LoadedModel, ranks: Ranks) -> tuple[Images, Seen]:
    """The features of the images that the run learned from, and the outputs for the validation images."""
    val = Evaluator(config, data, ranks).predict_split("val", model)
    of_train = features.cached(config, data, model.network, "train", model.precision, ranks, model.sha256)
    learned = data.training_rows(config)
    train = Images(of_train[np.isin(data.rows("train"), learned)], data.labels[learned])
    return train, Seen(val.logits, val.features, data.labels[val.rows])


def _find(
    config: Config, options: ThresholdOptions, model: LoadedModel, train: Images, measured: Measured
) -> tuple[UnknownThreshold, dict[str, Any]]:
    """The threshold of the score that is asked for, and what is to be said of all of them."""
    val = Images(measured.val.features, measured.val.group)
    promises = folds.promises(train, val, val, config.seed, options.kept)
    rows, chosen = [], None
    for name in unknown_scores.NAMES:
        score = unknown_scores.fit(name, train)
        lowest = measures.threshold(measured.val.by(score).score, options.kept)
        rows.append(
            {"name": name, "threshold": lowest} | promises[name].as_object() | measured.by(score, lowest)
        )
        if name == options.score:
            chosen = UnknownThreshold(score, lowest, options.kept, model.sha256, config.views)
    assert chosen is not None
    return chosen, {
        "checkpoint": str(model.path),
        "checkpoint_sha256": model.sha256,
        "tta": config.views,
        "score": options.score,
        "threshold": chosen.lowest,
        "kept": measures.promised(len(val.labels), options.kept)._asdict(),
        "classes": len(np.unique(train.labels)),
        "images": {"train": len(train.labels), **measured.about()},
        "scores": rows,
    }


def _show(result: Mapping[str, Any]) -> None:
    """The table on the terminal, and the promise in words."""
    known, has_test, has_unknown = result["images"], "test" in result["images"], "unknown" in result["images"]
    columns = ["score", "left out: AUROC", "left out: refused"]
    columns += [f"test ({known['test']:,}): kept"] if has_test else []
    unknown = f"unknown ({known['unknown']:,})" if has_unknown else ""
    columns += [f"{unknown}: AUROC", "FPR95", "refused"] if has_unknown else []
    rows = []
    for row in result["scores"]:
        cells = [row["left_out"]["auroc"], row["left_out"]["refused"]]
        cells += [row["test_kept"]] if has_test else []
        cells += list(row["unknown"].values()) if has_unknown else []
        mark = "*" if row["name"] == result["score"] else ""
        rows.append([row["name"] + mark, *map(words, cells)])
    console.show_table(f"{result['checkpoint']}, {result['classes']} known classes; * answers", columns, rows)
    kept = result["kept"]
    console.say(
        f"{result['score']} of {result['threshold']:.4g} or more counts as known: {known['val']:,} validation images "
        f"promise to keep {kept['value']:.1%} of further pictures of known classes (95 % of such thresholds: "
        f"{kept['low']:.1%} to {kept['high']:.1%})"
    )


def words(estimate: Mapping[str, float]) -> str:
    """`0.912 (0.884 .. 0.940)`: of an `Estimate` as a mapping."""
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} .. {estimate['high']:.3f})"
