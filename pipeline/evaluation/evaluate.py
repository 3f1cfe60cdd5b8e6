"""A checkpoint and a split become predictions and numbers. Nothing is trained here."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.common import files
from pipeline.common.errors import DataError
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.data.loader import build_loader
from pipeline.data.transforms import CentreCrop
from pipeline.data.tta import tta_crops
from pipeline.distributed import consistency, process_group
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation import metrics
from pipeline.evaluation.results import compute_metrics
from pipeline.inference import load_model, predict
from pipeline.inference.load_model import LoadedModel
from pipeline.runs import predictions

NOT_A_RESULT = "not a result: choosing a checkpoint by the test split would make its accuracy unfit to quote"


def evaluate(config: Config) -> dict[str, Any]:
    """Predict every image of a split once; write tables; return the content of `metrics.json`.

    Raises:
        UserError: the checkpoint or the data are missing, or do not belong together, or the model's
            outputs are not finite.
    """
    with process_group.join(config.train.device, config.distributed.timeout_s) as ranks:
        data = prepare.load(config)
        consistency.check_ranks_agree(config, sample_table.digest(data.samples), ranks)
        model = load_model.load_model(config, data.samples, load_model.checkpoint_path(config), ranks)
        look = Evaluator(config, data, ranks)
        looked = look.predict_split(config.eval.split, model)
        of_val = config.eval.split != "val" and data.rows("val")
        validated = look.predict_split("val", model) if of_val else None
        gap = {"peek_gap": _peek_gap(look, model, looked)} if config.eval.peek_gap else {}
        if not ranks.is_main:
            return {}
        origin = {
            "split": config.eval.split,
            "run": str(config.run_dir),
            "checkpoint": str(model.path),
            "checkpoint_sha256": model.sha256,
            "epoch": model.epoch,
            "step": model.step,
            "classes": data.samples["label"].nunique(),
            "tta": config.eval.tta,
            **look.test_readings(),
            **gap,
        }
        return _report(config, data, looked, validated, origin)


class Evaluator:
    """Passes over the splits of a data set, each with what it gave; readings of test are counted."""

    def __init__(self, config: Config, data: prepare.Prepared, ranks: Ranks) -> None:
        self.config, self.data, self.ranks = config, data, ranks
        self.labels = data.labels

    def predict_split(self, split: str, model: LoadedModel, purpose: str = "eval") -> predict.Predictions:
        """The model's outputs for each image of a split, the mean over the views of `eval.tta`.

        Probabilities are averaged, as Krizhevsky et al. (2012) do: a view of which the model is sure
        weighs no more than 1, where among logits it could outvote all others. The logits are the
        logarithm of that mean.
        """
        rows = np.array(self.data.rows(split), np.int64)
        if not len(rows):
            raise DataError(f"eval.split: {split} has no image; set data.val_fraction or take another split")
        crops = tta_crops(self.config.data, self.config.eval.tta)
        labels = [
            f"eval {split}" + f", view {n} of {len(crops)}" * (len(crops) > 1)
            for n in range(1, len(crops) + 1)
        ]
        views = [
            self._predict_view(crop, rows, model, label) for crop, label in zip(crops, labels, strict=True)
        ]
        looked = views[0] if len(views) == 1 else predict.average_views(views)
        if split == "test" and self.ranks.is_main:
            count_reading(self.config.run_dir, model, looked.top1_and_loss(self.labels)[0], purpose)
        ids = self.data.samples["id"].to_numpy()[rows]
        outputs = predictions.Outputs(ids, looked.logits, looked.features)
        predictions.check_outputs(outputs, model.path, self.data.samples["label"].nunique())
        return looked

    def test_readings(self) -> dict[str, int]:
        """How often the run has read the test split, when this evaluation is of it."""
        path = self.config.run_dir / "test_reads.jsonl"
        if self.config.eval.split != "test":
            return {}
        return {"test_reads": path.read_text(encoding="utf-8").count("\n")}

    def _predict_view(
        self, view: CentreCrop, rows: npt.NDArray[np.int64], model: LoadedModel, label: str
    ) -> predict.Predictions:
        """The outputs for one view of each row."""
        config = self.config
        loader = build_loader(self.data, view, config.data.workers, self.ranks)
        return predict.predict_rows(
            model.model,
            loader,
            rows,
            model.precision,
            self.ranks,
            batch_size=config.eval.batch_size,
            features=True,
            progress=label,
        )


def count_reading(run_dir: Path, model: LoadedModel, top1: float, purpose: str) -> None:
    """Note a reading of the test split in the run directory.

    Every reading could choose something; whoever quotes the number can see how often it was looked at.
    """
    path = run_dir / "test_reads.jsonl"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = {"time": now, "checkpoint": str(model.path), "step": model.step, "top1": top1, "purpose": purpose}
    files.write_text(path, f"{before}{json.dumps(line)}\n")


def _peek_gap(look: Evaluator, chosen: LoadedModel, looked: predict.Predictions) -> dict[str, Any]:
    """What choosing on test would have gained: best-on-test minus chosen, over the run's checkpoints.

    Those are the files in its folder of checkpoints, one for each training step; each is a reading.
    """
    top1 = {chosen.path.name: looked.top1_and_loss(look.labels)[0]}
    steps = {chosen.step}
    for path in look.ranks.broadcast(sorted(look.config.checkpoints_dir.glob("*.pt"))):
        other = load_model.load_model(look.config, look.data.samples, path, look.ranks)
        if other.step not in steps:
            steps.add(other.step)
            top1[path.name] = look.predict_split("test", other, "peek gap").top1_and_loss(look.labels)[0]
    best = max(top1.values())
    gap = best - top1[chosen.path.name]
    return {"gap": gap, "best_on_test": best, "chosen": chosen.path.name, "top1": top1, "note": NOT_A_RESULT}


def _report(
    config: Config,
    data: prepare.Prepared,
    looked: predict.Predictions,
    validated: predict.Predictions | None,
    origin: dict[str, Any],
) -> dict[str, Any]:
    samples = data.samples
    folder = predictions.folder_of(config.run_dir, config.eval.split)
    rows = samples.iloc[looked.rows]
    predicted = metrics.predictions(rows, looked.logits, sample_table.class_names(samples))
    outputs = predictions.Outputs(rows["id"].to_numpy("int64"), looked.logits, looked.features)
    validation = None
    if validated is not None:
        validation = predictions.Validation(
            validated.logits, samples["label"].to_numpy("int64")[validated.rows]
        )
    predictions.write(folder, predicted, outputs, validation)
    metrics_json, _ = compute_metrics(folder, samples, origin)
    return metrics_json
