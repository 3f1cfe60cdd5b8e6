"""The data stages in their order: an archive becomes an unpacked folder, a store and a sample table.

A stage is skipped when its output is there and its inputs are unchanged. Data sets, sizes and splits lie
side by side, told apart by the names of their folders and tables:

    data/downloads/CUB_200_2011.tgz
    data/cub200/raw/                        unpacked
    data/cub200/store-squash512-packed/     every picture, decoded and resized
    data/cub200/samples-val0.1-seed0.csv    the sample table
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import console, files, seeding, tables
from pipeline.common.errors import DataError
from pipeline.config.data import DataConfig
from pipeline.config.schema import Config
from pipeline.data import image_store, sample_table, splits
from pipeline.data.pictures import Layout
from pipeline.data.sources.source import source_of

STAGES_VERSION = 1  # raise it when a stage's output changes for the same inputs


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation read: the sample table, and the store with its rows in that order."""

    samples: pd.DataFrame
    store: image_store.Store

    def rows(self, split: str) -> list[int]:
        """The rows of a split, in the table's order."""
        return [int(row) for row in (self.samples["split"] == split).to_numpy().nonzero()[0]]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The label of each row: int64 [n], a copy."""
        return self.samples["label"].to_numpy("int64", copy=True)

    def training_rows(self, config: Config) -> npt.NDArray[np.int64]:
        """The rows that training learns from, rising: `train.subset` of each class of the training split.

        A smaller subset is part of a larger one of the same seed. Each class keeps one image at least.
        """
        rows = np.array(self.rows("train"), np.int64)
        if config.train.subset == 1:
            return rows
        labels = self.labels[rows]
        kept = []
        for label in np.unique(labels):
            class_rows = rows[labels == label]
            order = seeding.generator("subset", config.seed, int(label)).permutation(len(class_rows))
            kept.append(class_rows[order[: max(1, round(config.train.subset * len(class_rows)))]])
        return np.sort(np.concatenate(kept))


def prepare(config: Config) -> Prepared:
    """Run the stages that are due and show a summary of the data set.

    Raises:
        DataError: anything about the archive, its files or the disk that the user can mend.
    """
    source, root = source_of(config.data), fetch(config.data)
    images = source.read(root)
    samples_path, store_folder = output_paths(config)
    samples_inputs, store_inputs = _inputs(source.digest(root), config)

    def build_store(output: Path) -> None:
        image_store.build(images, root / "images", output, layout(config.data))

    def write_samples(output: Path) -> None:
        pictures = pd.read_csv(store_folder / "index.csv")[["id", *sample_table.PICTURE_COLUMNS]]
        samples = images.merge(pictures, on="id", validate="one_to_one")
        tables.write_csv(draw_splits(samples, config), output)

    _stage("store", store_folder, store_inputs, build_store)
    _stage("splits", samples_path, samples_inputs, write_samples)
    prepared = load(config)
    _show(prepared, config)
    return prepared


def load(config: Config) -> Prepared:
    """Open what `make data` left for this configuration.

    Raises:
        DataError: it did not run, or ran for another configuration.
    """
    samples_path, store_folder = output_paths(config)
    samples = sample_table.read(samples_path)
    return Prepared(samples, image_store.Store(store_folder, samples["id"].to_numpy("int64")))


def output_paths(config: Config) -> tuple[Path, Path]:
    """Where the sample table and the store of a configuration are, or will be."""
    return _samples_path(config), _folder(config.data) / layout(config.data).name


def outdated(config: Config, root: Path) -> list[str]:
    """The names of the outputs that `make data` would make anew.

    Args:
        root: as `find_root` returns it.
    """
    digest = source_of(config.data).digest(root)
    outputs = zip(output_paths(config), _inputs(digest, config), strict=True)
    return [path.name for path, inputs in outputs if not _is_done(path, inputs)]


def _inputs(source_digest: str, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the sample table and the store are made from; the same table serves stores of any size."""
    return {"texts": source_digest}, {"texts": source_digest, "layout": layout(config.data).name}


def _folder(config: DataConfig) -> Path:
    return config.root / source_of(config).folder_name


def layout(config: DataConfig) -> Layout:
    """How the store holds its pictures."""
    return Layout(config.resize, config.resize_px, config.store)


def _samples_path(config: Config) -> Path:
    data = config.data
    held_out = (
        f"fold{data.fold}of{data.folds}" if data.folds else f"val{data.val_images or data.val_fraction:g}"
    )
    sizes = {"train": data.train_images, "test": data.test_images}
    reduced = "".join(f"-{split}{count}" for split, count in sizes.items() if count is not None)
    return _folder(data) / f"samples-{held_out}{reduced}-seed{config.seed}.csv"


def _stage(name: str, output: Path, inputs: Mapping[str, Any], run: Callable[[Path], object]) -> None:
    """Run a stage unless its output is there and was made from the same inputs."""
    if _is_done(output, inputs):
        console.say(f"{name}  {output} is up to date")
        return
    run(output)
    files.stamp(_stamp_of(output), {"version": STAGES_VERSION, **inputs})


def _is_done(output: Path, inputs: Mapping[str, Any]) -> bool:
    return output.exists() and files.stamped(_stamp_of(output), {"version": STAGES_VERSION, **inputs})


def _stamp_of(output: Path) -> Path:
    return output.with_name(output.name + ".stamp.json")


def fetch(config: DataConfig) -> Path:
    """The folder with the data set's tables and `images`, which is fetched first if that is due."""
    source, raw = source_of(config), _folder(config) / "raw"
    if source.inputs is not None:
        _stage(source.verb, raw, source.inputs, source.fetch)
    return source.find_root(raw)


def find_root(config: DataConfig) -> Path | None:
    """The folder that `fetch` returns, without fetching anything; None: it is not there."""
    try:
        return source_of(config).find_root(_folder(config) / "raw")
    except DataError:
        return None


def draw_splits(samples: pd.DataFrame, config: Config) -> pd.DataFrame:
    """A sample table of all images with the split of each that is kept: columns `sample_table.COLUMNS`."""
    data = config.data
    return splits.draw(
        samples,
        val_fraction=data.val_fraction,
        folds=data.folds,
        fold=data.fold,
        seed=config.seed,
        sizes=splits.Sizes(data.train_images, data.val_images, data.test_images),
    )[sample_table.COLUMNS]


def _show(prepared: Prepared, config: Config) -> None:
    samples = prepared.samples
    counts = samples["split"].value_counts()
    smallest = int(samples[["width", "height"]].min(axis=1).to_numpy().argmin())
    width, height = samples["width"].iloc[smallest], samples["height"].iloc[smallest]
    console.show_table(
        f"{config.data.source}: {_samples_path(config)}",
        ["images", "classes", *sample_table.SPLITS, "greyscale", "smallest", "bytes"],
        [
            [
                len(samples),
                samples["label"].nunique(),
                *(int(counts.get(split, 0)) for split in sample_table.SPLITS),
                int(samples["grey"].sum()),
                f"{width}x{height}",
                files.size_in_words(int(samples["file_bytes"].sum())),
            ]
        ],
    )
