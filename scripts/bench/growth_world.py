"""Data sets, predictions and runs of any size, for measuring how time and memory grow with them.

A store is a file with a hole: pictures of 512 x 512 that take no room. Where pictures are shown, many images share those
of a small data set.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.common import files
from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import Config
from pipeline.data import image_store, prepare, sample_table, stages
from pipeline.evaluation import metrics
from pipeline.runs import predictions
from pipeline.runs.directory import RunDirectory
from pipeline.runs.log import FIELDS, HEADER

SOURCE_IMAGES = 10
"""of a class, at least: fewer images are of fewer classes"""
FEATURES = 16
RUNS = 50


def config(folder: Path, *overrides: str) -> Config:
    """A configuration whose data and runs lie in a folder."""
    rooms = (f"data.root={folder}", f"run.root={folder / 'runs'}", "run.name=drawn", "train.device=cpu")
    return load_config(None, ["data.source=synthetic", "model.pretrained=false", *rooms, *overrides])


def pictures_of(rows: int, classes: int) -> pd.DataFrame:
    """A sample table without splits: equally many images of each class, a fifth of them officially for the test."""
    classes = min(classes, rows // SOURCE_IMAGES)
    label = np.arange(rows) * classes // rows
    first = np.searchsorted(label, np.arange(classes))
    place, count = np.arange(rows) - first[label], np.bincount(label)[label]
    names = np.array([f"{number:04}.Drawn_species_{number}" for number in range(classes)], object)[label]
    drawn: dict[str, object] = {
        "id": np.arange(1, rows + 1),
        "path": [f"{name}/image_{number:07}.jpg" for number, name in enumerate(names)],
        "label": label,
        "class_name": names,
        "official": np.where(place >= 0.8 * count, "test", "train"),
        **dict.fromkeys(sample_table.SOURCE_COLUMNS[5:], np.nan),
        "width": 500,
        "height": 400,
        "grey": False,
        "file_bytes": 100_000,
    }
    return pd.DataFrame(drawn)


def write_data(config: Config, samples: pd.DataFrame, store: Path | None = None) -> None:
    """Write a sample table with splits, and its store, as `make data` leaves them.

    Args:
        store: of which the pictures are shared; None: a hole.
    """
    samples_path, folder = prepare.output_paths(config)
    folder.mkdir(parents=True)
    if store is None:
        side = config.data.resize_px
        shapes = pd.DataFrame({"length": [3 * side**2], "store_width": side, "store_height": side})
        with (folder / "pixels.bin").open("wb") as stream:
            stream.truncate(len(samples) * 3 * side**2)
        index = shapes.loc[np.zeros(len(samples), int)].reset_index(drop=True)
        index.insert(0, "offset", np.arange(len(samples)) * 3 * side**2)
    else:
        files.link_or_copy(store / "pixels.bin", folder / "pixels.bin")
        kept = pd.read_csv(store / "index.csv")[image_store.INDEX_COLUMNS[1:]]
        index = kept.loc[np.arange(len(samples)) % len(kept)].reset_index(drop=True)
    index.insert(0, "id", samples["id"])
    index.to_csv(folder / "index.csv", index=False)
    samples.to_csv(samples_path, index=False)
    sizes = {name: (folder / name).stat().st_size for name in ("pixels.bin", "index.csv")}
    digest = files.digest_of_file(folder / "index.csv")  # that of the pixels is compared on request alone
    made = {name: stages.FileRecord(size, digest) for name, size in sizes.items()}
    stages.write_stamp(folder, stages.Stamp("", made=made))
    stages.stamp_as_it_is(samples_path)


def write_predictions(config: Config, test_images: int, classes: int, store: Path) -> None:
    """An evaluated run: images with outputs at random, the true class ahead in two of three, and validation images."""
    val_images = test_images // 10
    counts = {"train": classes, "val": val_images, "test": test_images}
    split = np.repeat(list(counts), list(counts.values()))
    samples = pictures_of(len(split), len(split))
    samples["label"] = np.concatenate([np.arange(count) % classes for count in counts.values()])
    samples["class_name"] = [f"{label:04}.Drawn_species_{label}" for label in samples["label"]]
    samples["split"] = split
    write_data(config, samples, store)
    random = np.random.default_rng(0)
    bank = random.normal(size=(997, classes)).astype(np.float32)

    def logits_of(label: np.ndarray) -> np.ndarray:
        logits = bank[np.arange(len(label)) % len(bank)]
        logits[np.arange(len(label)), label] += random.normal(4.4, 2, len(label)).astype(np.float32)
        return logits

    run = RunDirectory(config.run_dir)
    folder = run.evaluation("test")
    folder.path.mkdir(parents=True)
    tested, val = samples[samples["split"] == "test"], samples[samples["split"] == "val"]
    logits = logits_of(tested["label"].to_numpy())
    names = sample_table.class_names(samples)
    table = pd.concat(
        metrics.predictions_table(tested[at : at + 1000], logits[at : at + 1000], names)
        for at in range(0, len(tested), 1000)
    )
    features = random.normal(size=(len(tested), FEATURES)).astype(np.float32)
    label = val["label"].to_numpy("int64")
    validation = predictions.Validation(logits_of(label), label) if len(label) else None
    predictions.StoredPredictions(table, logits, features, validation).write(folder)
    origin = {"split": "test", "run": str(run.path), "checkpoint": str(run.checkpoint("best"))}
    files.write_json(
        folder.metrics_file,
        {
            **origin,
            "checkpoint_sha256": "",
            "epoch": 1,
            "step": 1,
            "classes": classes,
            "tta": "none",
            "top1": 0.0,
        },
    )
    files.write_text(run.config_file, dump_config(config))


def write_runs(folder: Path, records: int) -> None:
    """Runs whose logs together have so many records, a hundred of them an epoch."""
    for number in range(RUNS):
        own = load_config(None, [f"run.root={folder}", f"run.name=run{number:03}", f"seed={number}"])
        run = RunDirectory(own.run_dir)
        run.path.mkdir(parents=True)
        run.config_file.write_text(dump_config(own), encoding="utf-8")
        lines = [json.dumps(HEADER)]
        for step in range(1, records // RUNS + 1):
            kind = "epoch" if step % 100 == 0 else "step"
            values = dict.fromkeys(FIELDS[kind], 0.5) | (
                {"epoch": step // 100, "phase": "sgd"} if kind == "epoch" else {}
            )
            lines.append(
                json.dumps({"kind": kind, "step": step, **values, "time": 1.0, "seconds": float(step)})
            )
        run.log_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
