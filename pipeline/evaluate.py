"""A checkpoint and a split become predictions, numbers and a report. Nothing is trained here."""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline import checkpoint, config_file, distributed, engine, files, metrics, terminal
from pipeline.config import Config
from pipeline.data import loader, prepare, table
from pipeline.data.transforms import CentreCrop
from pipeline.distributed import Ranks
from pipeline.errors import CheckpointError, DataError
from pipeline.models.build import Classifier, build, without_weights
from pipeline.precision import Precision
from pipeline.report import screen


def evaluate(config: Config) -> dict[str, Any]:
    """Predict every image of a split once; write the tables; return the content of `metrics.json`.

    Raises:
        UserError: the checkpoint or the data are missing, or do not belong together.
    """
    with distributed.ranks(config.train.device) as ranks:
        if not ranks.first:
            terminal.mute()
        data = prepare.load(config)
        path = checkpoint_path(config)
        content = checkpoint.read(path)
        names = table.class_names(data.samples)
        checkpoint.check_data(content, path, names, table.digest(data.samples))
        model = _model(config, content, path, len(names)).to(ranks.device)
        looked = _look(config, data, model, content["precision"], ranks)
        if not ranks.first:
            return {}
        predicted = metrics.predictions(data.samples.iloc[looked.rows], looked.logits, names)
        about = {
            "split": config.eval.split,
            "run": str(config.run_dir),
            "checkpoint": str(path),
            "epoch": content["epoch"],
            "step": content["step"],
            "classes": len(names),
        }
        return _write(config, predicted, names, about)


def checkpoint_path(config: Config) -> Path:
    """The checkpoint that `eval.checkpoint` names: best, last, or a path."""
    wanted = config.eval.checkpoint
    return config.checkpoints_dir / f"{wanted}.pt" if wanted in ("best", "last") else Path(wanted)


def _model(config: Config, content: dict[str, Any], path: Path, classes: int) -> Classifier:
    """The checkpoint's model; the configuration has to describe the one that was trained."""
    keys = {"name", "options", "mean", "std"}
    now = config.model.model_dump(mode="json", include=keys)
    before = {key: content["config"]["model"][key] for key in keys}
    changed = [f"model.{key} {a} -> {b}" for key, a, b in config_file.differences(before, now)]
    if changed:
        raise CheckpointError(
            f"{path}: was trained with another model ({', '.join(changed)}); give the configuration it was trained with"
        )
    model, _ = build(without_weights(config.model), classes)
    checkpoint.load_model(model, content, path)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    placed: Classifier = model.to(memory_format=layout)
    return placed


def _look(
    config: Config, data: prepare.Prepared, model: Classifier, trained_in: Precision, ranks: Ranks
) -> engine.Looked:
    rows = np.array(data.rows(config.eval.split), np.int64)
    if not len(rows):
        raise DataError(
            f"eval.split: {config.eval.split} has no image; set data.val_fraction or take another split"
        )
    labels = data.samples["label"].to_numpy("int64", copy=True)
    images = loader.Images(data.store, labels, CentreCrop(config.data))
    server = loader.Loader(images, loader.worker_count(config.data.workers, ranks), ranks.device)
    batches = loader.in_order(rows, config.eval.batch_size)
    with terminal.bar(f"eval {config.eval.split}", len(rows)) as bar:
        served = bar.count(server.serve(0, loader.share(batches, ranks)), map(len, batches))
        return engine.look(model, served, rows, trained_in, ranks)


def _write(
    config: Config, predicted: pd.DataFrame, names: list[str], about: Mapping[str, Any]
) -> dict[str, Any]:
    folder = config.run_dir / "eval" / config.eval.split
    per_class = metrics.per_class(predicted, names)
    pairs = metrics.confused_pairs(predicted)
    numbers = {**about, **metrics.summary(predicted)}
    if config.eval.split == "test":
        numbers["test_reads"] = count_reading(config.run_dir, numbers)
    table.write(predicted, folder / "predictions.csv")
    table.write(per_class, folder / "per_class.csv")
    table.write(pairs, folder / "confused_pairs.csv")
    table.write(metrics.confusion(predicted, names).reset_index(), folder / "confusion.csv")
    files.write_json(folder / "metrics.json", numbers)
    screen.show(numbers, per_class, pairs, folder)
    return numbers


def count_reading(run_dir: Path, numbers: Mapping[str, Any]) -> int:
    """Note a reading of the test split in the run directory; return how many there have been.

    Every reading could choose something; whoever quotes the number can see how often it was looked at.
    """
    path = run_dir / "test_reads.jsonl"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = {"time": now, **{key: numbers[key] for key in ("checkpoint", "step", "top1")}}
    text = f"{before}{json.dumps(line)}\n"
    files.write_text(path, text)
    return text.count("\n")
