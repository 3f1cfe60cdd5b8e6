"""Predicts a split with a checkpoint, stores the predictions, and computes the metrics. Nothing is trained here."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.common.errors import DataError
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.data.loader import build_loader
from pipeline.data.transforms import CentreCrop
from pipeline.data.tta import tta_crops
from pipeline.distributed import consistency, process_group
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation import (
    confirmatory,
    evaluated_on,
    evaluation_lock,
    label_sets,
    metrics,
    readings,
    run_taxonomy,
    training_state,
)
from pipeline.evaluation.results import compute_metrics, learned_rows
from pipeline.inference import load_model, predict
from pipeline.inference.load_model import LoadedModel
from pipeline.runs import predictions
from pipeline.runs.directory import EvaluationDirectory, RunDirectory

WITHOUT_IMAGES = {
    "train": "take another split with eval.split",
    "val": "hold some out with data.val_fraction and train anew, or take another split with eval.split",
    "test": "the data set has none for testing; take eval.split=val",
}
NOT_A_RESULT = "not a result: choosing a checkpoint by the test split would make its accuracy unfit to quote"


def evaluate_split(config: Config) -> dict[str, Any]:
    """Predict every image of a split once; write predictions, metrics and tables; return the metrics.

    Raises:
        UserError: the checkpoint or the data are missing or do not belong together, or the model's
            outputs are not finite.
    """
    config = config.at_evaluation
    training_state.await_end(config)
    with process_group.join(config.train, config.distributed.timeout_s) as ranks:
        training = training_state.check_is_over(config) if ranks.is_main else {}
        data = prepare.load(config)
        consistency.check_ranks_agree(config, sample_table.digest(data.samples), ranks)
        model = load_model.load_model(config, data.samples, load_model.checkpoint_path(config), ranks)
        folder = RunDirectory(config.run_dir).evaluation(config.eval.split)
        with evaluation_lock.held(folder) if ranks.is_main else nullcontext():
            return _evaluate(Evaluator(config, data, ranks), model, folder, training)


def _evaluate(
    evaluator: "Evaluator", model: LoadedModel, folder: EvaluationDirectory, training: dict[str, str]
) -> dict[str, Any]:
    """Args: training: what metrics.json says of a training that has not finished."""
    config, data = evaluator.config, evaluator.data
    by_labels = label_sets.of(config, data)  # before anything is predicted: a file may not fit
    judged = None
    if config.eval.split == "test" and evaluator.ranks.is_main:
        judged = confirmatory.judge(config, data, training)  # before test is read, too
    outputs = evaluator.predict_split(config.eval.split, model, judged.purpose if judged else "eval")
    fits_temperature = config.eval.split != "val" and data.rows("val")
    validation = evaluator.predict_split("val", model) if fits_temperature else None
    gap = {"peek_gap": _peek_gap(evaluator, model, outputs)} if config.eval.peek_gap else {}
    if not evaluator.ranks.is_main:
        return {}
    origin = {
        "split": config.eval.split,
        "run": str(config.run_dir),
        "checkpoint": str(model.path),
        "checkpoint_sha256": model.sha256,
        "epoch": model.epoch,
        "step": model.step,
        **training,
        **({} if config.train.refit is None else {"refit": str(config.train.refit)}),
        "classes": data.samples["label"].nunique(),
        "tta": config.eval.tta,
        **_size(config),
        **evaluator.test_readings(),
        **({"protocol": judged.protocol} if judged else {}),
        **gap,
    }
    _store(data, outputs, validation, folder)
    evaluated_on.write(folder, config, data, model, evaluator.ranks)
    if judged is not None:
        judged.keep(RunDirectory(config.run_dir))
    label_sets.write(folder, by_labels)
    taxonomy = run_taxonomy.with_data(config, data)
    metrics_json, _ = compute_metrics(folder, data.samples, learned_rows(config, data), origin, taxonomy)
    return metrics_json


def _size(config: Config) -> dict[str, int]:
    """What metrics.json says of a size at evaluation (`eval.image_px`), where there is one."""
    if config.eval.image_px is None:
        return {}
    return {"image_px": config.eval.image_px, "resize_px": config.data.resize_px}


class Evaluator:
    """Predicts the splits of a data set with checkpoints of a run, and counts the readings of the test split."""

    def __init__(self, config: Config, data: prepare.Prepared, ranks: Ranks) -> None:
        self.config, self.data, self.ranks = config, data, ranks
        self.labels = data.labels
        self.run = RunDirectory(config.run_dir)

    def predict_split(self, split: str, model: LoadedModel, purpose: str = "eval") -> predict.Predictions:
        """The model's outputs for each image of a split, averaged over the views of `eval.tta`.

        Probabilities are averaged, as Krizhevsky et al. (2012) do, and the logits are the logarithm of the
        mean: so the most confident view weighs as much as any other, while a mean of logits could follow it alone.

        Args:
            purpose: for the list of readings of the test split.

        Raises:
            DataError: the split has no image, or the model's outputs are not finite.
        """
        rows = np.array(self.data.rows(split), np.int64)
        if not len(rows):
            raise DataError(f"eval.split: {split} has no image; {WITHOUT_IMAGES[split]}")
        crops = tta_crops(self.config.data, self.config.eval.tta)
        labels = [
            f"eval {split}" + f", view {n} of {len(crops)}" * (len(crops) > 1)
            for n in range(1, len(crops) + 1)
        ]
        counts = split == "test" and self.ranks.is_main
        complete_reading = readings.begin(self.run, model, purpose) if counts else None
        views = [
            self._predict_view(crop, rows, model, label) for crop, label in zip(crops, labels, strict=True)
        ]
        outputs = predict.average_views(views)
        if complete_reading is not None:
            complete_reading(outputs.top1_and_loss(self.labels)[0])
        ids = self.data.samples["id"].to_numpy()[rows]
        classes = self.data.samples["label"].nunique()
        predictions.check_outputs(ids, outputs.logits, outputs.features, model.path, classes)
        return outputs

    def test_readings(self) -> dict[str, int]:
        """`test_reads`: how often the run has read the test split; empty when this evaluation is of another split."""
        return {"test_reads": self.run.count_test_readings()} if self.config.eval.split == "test" else {}

    def _predict_view(
        self, view: CentreCrop, rows: npt.NDArray[np.int64], model: LoadedModel, label: str
    ) -> predict.Predictions:
        """The outputs for one view of each row."""
        config = self.config
        loader = build_loader(self.data, view, config.data.workers, self.ranks)
        return predict.predict_rows(
            model.network,
            loader,
            rows,
            model.precision,
            self.ranks,
            batch_size=config.eval.batch_size,
            features=True,
            progress=label,
        )


def _peek_gap(evaluator: Evaluator, chosen: LoadedModel, outputs: predict.Predictions) -> dict[str, Any]:
    """What choosing on test would have gained: the best top-1 on test among the run's checkpoints minus the chosen's.

    The checkpoints are the files in the run's folder, one for each training step; each is a reading of test.
    """
    labels = evaluator.labels
    top1 = {chosen.path.name: outputs.top1_and_loss(labels)[0]}
    steps = {chosen.step}
    for path in evaluator.ranks.broadcast(sorted(evaluator.run.checkpoints.glob("*.pt"))):
        model = load_model.load_model(evaluator.config, evaluator.data.samples, path, evaluator.ranks)
        if model.step not in steps:
            steps.add(model.step)
            top1[path.name] = evaluator.predict_split("test", model, "peek gap").top1_and_loss(labels)[0]
    best = max(top1.values())
    gap = best - top1[chosen.path.name]
    return {"gap": gap, "best_on_test": best, "chosen": chosen.path.name, "top1": top1, "note": NOT_A_RESULT}


def _store(
    data: prepare.Prepared,
    outputs: predict.Predictions,
    validation: predict.Predictions | None,
    folder: EvaluationDirectory,
) -> None:
    """Write the predictions of a split, with those of the validation images that fit a temperature."""
    samples = data.samples.iloc[outputs.rows]
    table = metrics.predictions_table(samples, outputs.logits, sample_table.class_names(data.samples))
    stored_validation = (
        None
        if validation is None
        else predictions.Validation(validation.logits, data.labels[validation.rows])
    )
    predictions.StoredPredictions(table, outputs.logits, outputs.features, stored_validation).write(folder)
