"""The data stages in their order: an archive becomes an unpacked folder, a store and a sample table.

Every stage is skipped when its output is there and its inputs are what they were; the folders'
names say what was asked for, so data sets, sizes and splits lie side by side:

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
from pipeline.data.sources import array_datasets, cub200, download, extract
from pipeline.data.sources.drawn_birds import dataset

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


def prepare(config: Config) -> Prepared:
    """Run the stages that are due and show what there is.

    Raises:
        DataError: anything about the archive, its files or the disk that the user can mend.
    """
    folder, how = _folder(config.data), layout(config.data)
    root = bring(config.data)
    listed, digest = _listed(config.data, root)
    of_table, of_store = _inputs(digest, config)
    _stage(
        "store",
        folder / how.name,
        of_store,
        lambda output: image_store.build(listed, root / "images", output, how),
    )
    _stage(
        "splits",
        _samples_path(config),
        of_table,
        lambda output: _draw(listed, folder / how.name, config, output),
    )
    prepared = load(config)
    _show(prepared, config)
    return prepared


def load(config: Config) -> Prepared:
    """Open what `make data` left for this configuration.

    Raises:
        DataError: it did not run, or ran for another configuration.
    """
    samples_path, store_folder = places(config)
    samples = sample_table.read(samples_path)
    return Prepared(samples, image_store.Store(store_folder, samples["id"].to_numpy("int64")))


def _listed(config: DataConfig, root: Path) -> tuple[pd.DataFrame, str]:
    """The source's table, checked, and a digest of the files that it was read from."""
    if config.source in array_datasets.READERS:
        return array_datasets.read(root), array_datasets.digest(root)
    listed = cub200.read(root)
    if is_official(config):
        cub200.check_official(listed, root)
    return listed, cub200.text_digest(root)


def places(config: Config) -> tuple[Path, Path]:
    """Where the sample table and the store of a configuration are, or will be."""
    return _samples_path(config), _folder(config.data) / layout(config.data).name


def outdated(config: Config, root: Path) -> list[str]:
    """The outputs among `places` that `make data` would make anew; root: the folder that `unpacked` finds."""
    texts = (
        array_datasets.digest(root)
        if config.data.source in array_datasets.READERS
        else cub200.text_digest(root)
    )
    both = zip(places(config), _inputs(texts, config), strict=True)
    return [output.name for output, inputs in both if not _is_done(output, inputs)]


def _inputs(texts: str, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the sample table and the store are made from; the same table serves stores of any size.

    texts: digest of the source's own tables.
    """
    return {"texts": texts}, {"texts": texts, "layout": layout(config.data).name}


def _md5(config: DataConfig) -> str:
    return config.archive_md5 or cub200.ARCHIVE.md5


def _folder(config: DataConfig) -> Path:
    """Where a data set lives: its name tells other archives and other drawn sets apart."""
    if config.source == "synthetic":
        drawn = config.synthetic
        size = f"{drawn.species}x{drawn.images_per_species}-{drawn.train_per_species}-{drawn.long_side_px}px"
        planted = "".join(
            f"-{word}{share:g}"
            for word, share in (("flipped", drawn.flipped_labels), ("doubled", drawn.duplicates))
            if share
        )
        return config.root / f"synthetic-{size}-seed{drawn.seed}{planted}"
    if config.source == "digits":
        return config.root / "digits"
    if config.archive is not None and (config.archive.is_dir() or config.source in array_datasets.READERS):
        return config.root / f"{config.source}-{files.digest_of(str(config.archive.resolve()))[:8]}"
    if config.source in array_datasets.READERS:
        return config.root / config.source
    return config.root / ("cub200" if _md5(config) == cub200.ARCHIVE.md5 else f"cub200-{_md5(config)[:8]}")


def layout(config: DataConfig) -> image_store.Layout:
    """How the pictures of a configuration stand in its store."""
    return image_store.Layout(config.resize, config.resize_px, config.store)


def _samples_path(config: Config) -> Path:
    data = config.data
    held_out = (
        f"fold{data.fold}of{data.folds}" if data.folds else f"val{data.val_images or data.val_fraction:g}"
    )
    sizes = {"train": data.train_images, "test": data.test_images}
    asked = "".join(f"-{split}{count}" for split, count in sizes.items() if count is not None)
    return _folder(data) / f"samples-{held_out}{asked}-seed{config.seed}.csv"


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


def is_official(config: DataConfig) -> bool:
    """Whether the data are the published archive of CUB-200-2011, by its digest."""
    return config.source == "cub200" and _md5(config) == cub200.ARCHIVE.md5


def bring(config: DataConfig) -> Path:
    """The folder with the data set's text files and `images`: drawn, given, or unpacked, if it is not yet."""
    raw = _folder(config) / "raw"
    if config.source in array_datasets.READERS:
        _stage("write", raw, {"source": config.source}, lambda output: _write_arrays(config, output))
        return raw
    if config.source == "synthetic":
        _stage("draw", raw, config.synthetic.model_dump(), lambda output: _draw_birds(config, output))
    elif config.archive is not None and config.archive.is_dir():
        return cub200.find_root(config.archive)
    else:
        _stage("unpack", raw, {"md5": _md5(config)}, lambda output: _unpack(config, output))
    return cub200.find_root(raw)


def raw(config: DataConfig) -> Path | None:
    """What people marked: the folder that `bring` left, without bringing anything; None when there is none."""
    if config.source in array_datasets.READERS:
        return None
    given = config.source == "cub200" and config.archive is not None and config.archive.is_dir()
    folder = config.archive if given and config.archive is not None else _folder(config) / "raw"
    try:
        return cub200.find_root(folder)
    except DataError:
        return None


def unpacked(config: DataConfig) -> Path | None:
    """The folder with `images` that `bring` left, without bringing anything; None when it is gone."""
    if config.source in array_datasets.READERS:
        folder = _folder(config) / "raw"
        return folder if (folder / array_datasets.LIST).is_file() else None
    return raw(config)


def _write_arrays(config: DataConfig, output: Path) -> None:
    read = array_datasets.READERS[config.source](
        config.archive or config.root / "downloads", config.archive is None
    )
    with files.replacing_folder(output) as part:
        array_datasets.write(read, part)


def _draw_birds(config: DataConfig, output: Path) -> None:
    drawn = config.synthetic
    with files.replacing_folder(output) as part:
        dataset.write(
            part,
            species=drawn.species,
            images_per_species=drawn.images_per_species,
            train_per_species=drawn.train_per_species,
            long_side_px=drawn.long_side_px,
            seed=drawn.seed,
            flipped_labels=drawn.flipped_labels,
            duplicates=drawn.duplicates,
        )


def _unpack(config: DataConfig, output: Path) -> None:
    if config.archive is None:
        archive = config.root / "downloads" / "CUB_200_2011.tgz"
        download.fetch(cub200.ARCHIVE, archive)
    else:
        archive = config.archive
        official = _md5(config) == cub200.ARCHIVE.md5
        download.verify_archive(archive, _md5(config), cub200.ARCHIVE.size_bytes if official else None)
    with files.replacing_folder(output) as part:
        extract.unpack(archive, part)


def _draw(listed: pd.DataFrame, store_folder: Path, config: Config, output: Path) -> None:
    data = config.data
    pictures = pd.read_csv(store_folder / "index.csv")[["id", *sample_table.PICTURE_COLUMNS]]
    samples = splits.draw(
        listed.merge(pictures, on="id", validate="one_to_one"),
        val_fraction=data.val_fraction,
        folds=data.folds,
        fold=data.fold,
        seed=config.seed,
        sizes=splits.Sizes(data.train_images, data.val_images, data.test_images),
    )
    tables.write_csv(samples[sample_table.COLUMNS], output)


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


def training_rows(config: Config, data: Prepared) -> npt.NDArray[np.int64]:
    """The rows of the sample table that are learned from, rising: of split train, `train.subset` of each class.

    A smaller share of the same seed is a part of a larger one. At least one image of each class stays.
    """
    rows = np.array(data.rows("train"), np.int64)
    if config.train.subset == 1:
        return rows
    labels = data.samples["label"].to_numpy("int64")[rows]
    kept = []
    for label in np.unique(labels):
        of_class = rows[labels == label]
        order = seeding.generator("subset", config.seed, int(label)).permutation(len(of_class))
        kept.append(of_class[order[: max(1, round(config.train.subset * len(of_class)))]])
    return np.sort(np.concatenate(kept))
