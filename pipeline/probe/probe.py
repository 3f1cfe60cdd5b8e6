"""The accuracy that a backbone's features have as they are, before any training: the first line of a table of results.

All images pass the backbone once, in their centre crop. Three classifiers then learn from the features of the training
images (`classifiers`), and each predicts the test once.
"""

import hashlib
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.common import console, files, seeding
from pipeline.common.errors import RUN_DATA, DataError
from pipeline.config.load import dump_config
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table
from pipeline.data.prepare import Prepared
from pipeline.distributed import consistency, process_group
from pipeline.distributed.process_group import Ranks
from pipeline.evaluation import evaluation_lock, metrics, readings
from pipeline.evaluation.results import compute_metrics
from pipeline.inference import features
from pipeline.inference.linear_head import Images
from pipeline.inference.load_model import LoadedModel
from pipeline.inference.predicting_form import predicting_form
from pipeline.models.build import build_model, without_weights
from pipeline.models.classifier import Classifier
from pipeline.models.option_errors import memory_errors
from pipeline.models.precision import resolve_precision
from pipeline.probe.classifiers import Fitted, fit_all
from pipeline.runs import predictions
from pipeline.runs.directory import ProbeDirectory, RunDirectory

ADVICE = "give others with model.weights"


def probe(config: Config) -> dict[str, Any]:
    """Fit the three classifiers, predict the test with each, and write RUN/probe; the content of probe.json.

    Raises:
        UserError: the data or the weights are missing or do not fit, or there are no training or no test images.
    """
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    with process_group.join(config.train, config.distributed.timeout_s) as ranks:
        data = prepare.load(config)
        consistency.check_ranks_agree(config, sample_table.digest(data.samples), ranks)
        _check_splits(data)
        folder = ProbeDirectory(RunDirectory(config.run_dir).probe_folder)
        with evaluation_lock.held(folder.evaluation("test")) if ranks.is_main else nullcontext():
            backbone, source = _backbone(config, data.samples["label"].nunique(), ranks)
            all_rows = np.arange(len(data.samples))
            of_all = features.kept(
                folder.features_file,
                *(config, data, backbone.network, all_rows),
                *(backbone.precision, ranks, backbone.sha256, ADVICE),
            )
            if not ranks.is_main:
                return {}
            result = _Probe(config, data, folder, of_all).run(backbone)
            result |= {
                "model": config.model.name,
                "weights": source,
                "precision": backbone.precision,
                "seconds": round(time.perf_counter() - started_s, 1),
                "cpu_seconds": round(time.process_time() - started_cpu_s, 1),
            }
            files.write_json(folder.summary_file, result)
    _show(result, folder)
    return result


class _Probe:
    """The classifiers of one backbone's features: those that are learned from, chosen by, and tested on."""

    def __init__(
        self, config: Config, data: Prepared, folder: ProbeDirectory, of_all: features.Features
    ) -> None:
        """of_all: the features of each row of the sample table, float32 [n, D]."""
        self.config, self.data, self.folder, self.of_all = config, data, folder, of_all
        self.training_rows = data.training_rows(config)
        self.test_rows = np.array(data.rows("test"), np.int64)

    def run(self, backbone: LoadedModel) -> dict[str, Any]:
        """Fit, predict the test once, and write what each classifier predicted."""
        classes = self.data.samples["label"].nunique()
        train, val = self._images(self.training_rows), self._images(np.array(self.data.rows("val"), np.int64))
        fitted = fit_all(train, val, classes)
        complete_reading = readings.begin(self.folder, backbone, "probe")
        test = self._images(self.test_rows)
        logits = {classifier.name: classifier.logits(test.features) for classifier in fitted}
        complete_reading(float((logits["linear"].argmax(axis=1) == test.labels).mean()))
        origin = {
            "split": "test",
            "checkpoint_sha256": backbone.sha256,
            "epoch": 0,
            "step": 0,
            "classes": classes,
            "tta": "none",
            "test_reads": RunDirectory(self.config.run_dir).count_test_readings(),
        }
        rows = [self._write(classifier, logits[classifier.name], val, origin) for classifier in fitted]
        return {
            "classifiers": rows,
            "images": {"train": len(train.labels), "val": len(val.labels), "test": len(test.labels)},
            "classes": classes,
            "features": self.of_all.shape[1],
            "test_reads": origin["test_reads"],
        }

    def _images(self, rows: npt.NDArray[np.int64]) -> Images:
        return Images(self.of_all[rows], self.data.labels[rows])

    def _write(
        self,
        classifier: Fitted,
        logits: npt.NDArray[np.float32],
        val: Images,
        origin: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write a classifier's predictions as an evaluation; its entry of probe.json."""
        run = self.folder.classifier(classifier.name)
        files.write_text(run.config_file, dump_config(self.config))
        names = sample_table.class_names(self.data.samples)
        table = metrics.predictions_table(self.data.samples.iloc[self.test_rows], logits, names)
        validation = (
            predictions.Validation(classifier.logits(val.features), val.labels) if len(val.labels) else None
        )
        without_features = np.empty((len(logits), 0), np.float32)  # features.npz has them
        evaluation = run.evaluation("test")
        predictions.StoredPredictions(table, logits, without_features, validation).write(evaluation)
        own = {"run": str(run.path), "checkpoint": classifier.name}
        numbers, _ = compute_metrics(evaluation, self.data.samples, self.training_rows, {**origin, **own})
        return {
            "name": classifier.name,
            **classifier.setting,
            "val_top1": classifier.val_top1,
            **{key: numbers[key] for key in ("top1", "top1_low", "top1_high")},
        }


def _check_splits(data: Prepared) -> None:
    """Raise a `DataError` when there is nothing to learn from, or nothing to test on."""
    if not data.rows("train"):
        raise DataError("the sample table has no training image; check the data set's official split")
    if not data.rows("test"):
        raise DataError(
            "probe: the data set has no test images, whose accuracy probe reports; hold some out with "
            f"data.test_fraction, or list them, and {RUN_DATA}"
        )


def _backbone(config: Config, classes: int, ranks: Ranks) -> tuple[LoadedModel, str]:
    """The network as a training would begin with it, in evaluation mode, and where its weights are from.

    Its digest is of all that features depend on: the settings of the model, its precision, and every tensor but those
    of the new layers, which features do not see.
    """
    torch.manual_seed(seeding.seed_of("weights", config.seed))
    model, origin = build_model(config.model if ranks.is_main else without_weights(config.model), classes)
    tensors, origin = ranks.broadcast((model.state_dict(), origin))
    model.load_state_dict(tensors)
    precision = ranks.broadcast(resolve_precision(config.train.precision, ranks.device))
    settings = config.model.model_dump(mode="json", exclude={"weights", "pretrained"})
    digest = files.digest_of([settings, precision, _digest_of_weights(model)])
    with memory_errors(
        f"train.device: the memory of {ranks.device} does not suffice for the model",
        "end what else uses it, or set train.device=cpu",
    ):
        placed, fused = predicting_form(model.eval(), config, precision, ranks.device)
    source = str(origin["source"])
    return LoadedModel(placed, Path(source), digest, 0, 0, precision, fused), source


def _digest_of_weights(model: Classifier) -> str:
    """The SHA-256 of a network's tensors, without those of its classifiers."""
    heads = {
        id(tensor)
        for layer in (model.head, model.mid_head)
        if layer is not None
        for tensor in layer.parameters()
    }
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if id(tensor) not in heads:
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _show(result: Mapping[str, Any], folder: ProbeDirectory) -> None:
    """The table on the terminal."""
    images = result["images"]
    console.show_table(
        f"{result['model']}  {result['features']:,} features, {result['classes']} classes, "
        f"{images['train']:,} training images",
        [
            "classifier",
            "setting",
            f"validation top-1 ({images['val']:,})",
            f"test top-1 ({images['test']:,})",
            "95 % interval",
        ],
        [
            [
                row["name"],
                " ".join(f"{key} {row[key]:g}" for key in ("weight_decay", "k") if key in row) or "-",
                "-" if row["val_top1"] is None else row["val_top1"],
                row["top1"],
                f"{row['top1_low']:.4f} .. {row['top1_high']:.4f}",
            ]
            for row in result["classifiers"]
        ],
    )
    if not images["val"]:
        console.say("no validation images: weight decay and k are fixed values, and nothing was chosen")
    console.say(f"the test split has been read {result['test_reads']} time(s) by this run")
    console.say(f"probe  {folder.path}")
