"""The data stages in their order: an archive becomes an unpacked folder, a store and a sample table.

A stage is skipped when its output is as it was made and its inputs are unchanged. Data sets, sizes and splits lie
side by side, told apart by the names of their folders and tables:

    data/downloads/CUB_200_2011.tgz
    data/cub200/raw/                        unpacked
    data/cub200/store-squash512-packed/     every picture, decoded and resized
    data/cub200/samples-val0.1-seed0.csv    the sample table
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import console, files, seeding, tables
from pipeline.common.errors import RUN_DATA, DataError, name_some
from pipeline.config.data import DataConfig
from pipeline.config.schema import Config
from pipeline.data import (
    corrections,
    earlier_tables,
    image_store,
    sample_table,
    sampling,
    splits,
    stages,
    summary,
    taxonomy,
)
from pipeline.data.pictures import FORMATS, Layout
from pipeline.data.sources.source import check_archive, source_of
from pipeline.data.stages import Removal, Stage
from pipeline.data.table_name import beside, prepared_instead, table_name
from pipeline.data.taxonomy import Taxonomy


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation read: the sample table, and the store with its rows in that order."""

    samples: pd.DataFrame
    store: image_store.Store
    taxonomy: Taxonomy | None = None

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
        all_labels = self.labels
        labels = all_labels[rows]
        kept = []
        for class_rows in sampling.by_class(rows, labels):
            label = int(all_labels[class_rows[0]])
            order = seeding.generator("subset", config.seed, label).permutation(len(class_rows))
            kept.append(class_rows[order[: max(1, round(config.train.subset * len(class_rows)))]])
        return np.sort(np.concatenate(kept))


def prepare(config: Config, verify: bool = False) -> Prepared:
    """Run the stages that are due and show a summary of the data set.

    Args:
        verify: read everything again, and make anew what differs from what was made.

    Raises:
        DataError: anything about the archive, its files or the disk that the user can mend; or another process
            prepared the same data set for `distributed.data_timeout_minutes`.
    """
    wait_minutes = config.distributed.data_timeout_minutes
    try:
        root = fetch(config.data, wait_minutes)
    except DataError as error:
        if not _is_given(config.data):
            raise
        prepared = _load_without_source(config, error, verify)
    else:
        if verify:
            _verify_fetched(config.data)
        for stage in stages_from(config, root):
            stage.run(wait_minutes, verify)
        stamp = stages.read_stamp(_samples_path(config))
        source_of(config.data).remember(_folder(config.data), "" if stamp is None else stamp.source)
        prepared = load(config)
    summary.show(
        prepared.samples,
        prepared.taxonomy,
        config.data,
        *output_paths(config),
        find_root(config.data),
        is_refit=config.train.refit is not None,
    )
    return prepared


def load(config: Config) -> Prepared:
    """Open what `plumage data` left for this configuration; in a refit (`train.refit`) validation images train.

    Raises:
        DataError: it did not run, or ran for another configuration, or what it made has changed since.
    """
    samples_path, store_folder = output_paths(config)
    stamps = check(config)
    samples = sample_table.read(samples_path)
    states = {stamp.source for stamp in stamps if stamp.made is not None}
    if len(states) > 1:
        raise DataError(
            f"{store_folder}: made from another state of the source than {samples_path.name}; {RUN_DATA}"
        )
    if config.train.refit is not None:
        samples["split"] = samples["split"].replace("val", "train")
    hierarchy = taxonomy.of(config.data, _folder(config.data), sample_table.class_names(samples))
    return Prepared(samples, image_store.Store(store_folder, samples["id"].to_numpy("int64")), hierarchy)


def check(config: Config) -> list[stages.Stamp]:
    """The stamps of the sample table and the store of a configuration.

    Raises:
        DataError: one of them is missing, or has changed since it was made.
    """
    return [_checked_stamp(path) for path in output_paths(config)]


def _checked_stamp(output: Path) -> stages.Stamp:
    if not output.exists():
        raise DataError(f"{output}: missing; {RUN_DATA}{prepared_instead(output)}")
    stamp = stages.read_stamp(output)
    if stamp is None:
        raise DataError(f"{output}: without a whole stamp, so it may not be finished; {RUN_DATA}")
    if what := stages.changes(output):
        raise DataError(f"{output}: has changed since it was made: {what}; {RUN_DATA}")
    return stamp


def _is_given(config: DataConfig) -> bool:
    """Whether the user gave a folder as the source."""
    return source_of(config).inputs is None


def _load_without_source(config: Config, error: DataError, verify: bool) -> Prepared:
    """What was prepared from a folder that is not there now; `error` where it is not there or has changed."""
    for output in output_paths(config):
        if not output.exists():
            raise error
        if what := stages.changes(output, verify):
            raise DataError(f"{output}: {what}; bring the folder back and {RUN_DATA} ({error})") from error
    prepared = load(config)
    console.warn(f"{str(error).partition(';')[0]}; the data that were prepared from it are taken as they are")
    return prepared


def _verify_fetched(config: DataConfig) -> None:
    """Warn when the fetched folder has changed: what the user changed there stays."""
    raw = _folder(config) / "raw"
    if what := stages.changes(raw):
        console.warn(
            f"{raw}: {what}; unless you changed it yourself, rename it and {RUN_DATA}, which makes it anew"
        )


def output_paths(config: Config) -> tuple[Path, Path]:
    """Where the sample table and the store of a configuration are, or will be."""
    return _samples_path(config), _folder(config.data) / _store_name(config.data)


def pictures_digest(config: Config) -> str | None:
    """A digest of the stored pictures of a configuration, as they were made; None where there is no record of that."""
    return stages.digest_of_made(output_paths(config)[1])


def stages_from(config: Config, root: Path) -> list[Stage | Removal]:
    """The stages that make the store, the sample table and the hierarchy from a source, in their order.

    Args:
        root: as `find_root` returns it.

    Raises:
        DataError: the source's tables are damaged.
    """
    source = source_of(config.data)
    images, folder, how_to_correct = source.read(root), source.images(root), source.how_to_correct(root)
    sample_table.check_learnable(images, root)
    samples_path, store_folder = output_paths(config)
    skips = config.data.on_bad == "skip"
    decided = corrections.of(config.data)
    changing = None if decided is None else corrections.changes(decided, images, config.data.source)

    def build_store(output: Path) -> dict[str, str]:
        form, originals = layout(config.data), partial(source.originals, root)
        return image_store.build(images, folder, output, form, skips, originals, how_to_correct).checksums

    def write_samples(output: Path) -> None:
        pictures = pd.read_csv(store_folder / "index.csv")[["id", *sample_table.PICTURE_COLUMNS]]
        samples = images.merge(pictures, on="id", validate="one_to_one")
        if skips:
            _list_skipped(store_folder / image_store.SKIPPED, samples_path, images, samples, how_to_correct)
        drawn = draw_splits(samples, config)
        if decided is not None and changing is not None:
            drawn, listed = corrections.apply(drawn, changing, decided.path)
            tables.write_csv(listed, beside(samples_path, "corrected"))
        drawn.to_csv(output, index=False)
        earlier_tables.keep(samples_path, drawn)

    source_inputs: dict[str, Any] = {"texts": source.digest(root)}
    if _is_given(config.data):
        source_inputs["pictures"] = _digest_of_pictures(folder, images["path"])
    if skips:  # which pictures are left out depends on the formats that can be read here
        source_inputs |= {"on_bad": "skip", "formats": FORMATS}
    state = files.digest_of(source_inputs)
    store_inputs = {**source_inputs, "layout": layout(config.data).name}
    table_inputs = {**source_inputs, **({} if decided is None else {"corrections": decided.digest})}
    names = sample_table.class_names(images)
    # the same table serves stores of any size
    return [
        Stage("store", store_folder, store_inputs, build_store, source=state),
        Stage("splits", samples_path, table_inputs, write_samples, is_folder=False, source=state),
        *taxonomy.stages_of(config.data, source.taxonomy(root), _folder(config.data), names, root),
    ]


def _list_skipped(
    listed: Path, samples_path: Path, images: pd.DataFrame, samples: pd.DataFrame, how_to_correct: str
) -> None:
    """Write the list of the pictures that were left out beside the sample table.

    Raises:
        DataError: a class has lost all its pictures.
    """
    skipped = tables.read_csv(listed, {"path": str, "reason": str})
    if gone := sorted(set(images["class_name"]).difference(samples["class_name"])):
        raise DataError(
            f"{listed}: no picture of {name_some(gone)} can be read; {how_to_correct}, or leave these classes out"
        )
    tables.write_csv(skipped, beside(samples_path, "skipped"))


def _digest_of_pictures(folder: Path, paths: Iterable[str]) -> str:
    """A digest of the sizes and times of a user's pictures: one that was replaced is seen."""

    def state(path: str) -> list[int]:
        try:
            found = (folder / path).stat()
        except OSError:  # is named where pictures are decoded
            return []
        return [found.st_size, found.st_mtime_ns]

    return files.digest_of({path: state(path) for path in paths})


def outdated(config: Config, root: Path, verify: bool = False) -> list[str]:
    """The outputs that `plumage data` would make anew, each with the reason.

    Args:
        root: as `find_root` returns it.
        verify: compare the digests of all files, too.

    Raises:
        DataError: the source's tables are damaged.
    """
    stages_ = stages_from(config, root)
    return [f"{stage.output.name} ({why})" for stage in stages_ if (why := stage.due(verify))]


def _folder(config: DataConfig) -> Path:
    return config.root / source_of(config).folder_name


def layout(config: DataConfig) -> Layout:
    """How the store holds its pictures."""
    return Layout.of(config)


def _store_name(config: DataConfig) -> str:
    """The name of the layout; a store that may lack pictures has one of its own."""
    name = layout(config).name
    return f"{name}-skip" if config.on_bad == "skip" else name


def _samples_path(config: Config) -> Path:
    return _folder(config.data) / table_name(config)


def fetch(config: DataConfig, wait_minutes: float = stages.WAIT_MINUTES) -> Path:
    """The folder with the data set's tables and `images`, which is fetched first if that is due.

    Args:
        wait_minutes: for another process that prepares the same data set.
    """
    check_archive(config)
    source, raw = source_of(config), _folder(config) / "raw"
    if source.inputs is not None:
        Stage(source.verb, raw, source.inputs, source.fetch, kind=stages.FolderRecord).run(wait_minutes)
    return source.find_root(raw)


def find_root(config: DataConfig) -> Path | None:
    """The folder that `fetch` returns, without fetching anything; None: it is not there."""
    try:
        return source_of(config).find_root(_folder(config) / "raw")
    except DataError:
        return None


def draw_splits(samples: pd.DataFrame, config: Config) -> pd.DataFrame:
    """A sample table of all images with the split of each that is kept: `sample_table.COLUMNS`, and groups if any."""
    data = config.data
    drawn = splits.draw(
        samples,
        val_fraction=data.val_fraction,
        folds=data.folds,
        fold=data.fold,
        seed=config.split_seed,
        sizes=splits.Sizes(data.train_images, data.val_images, data.test_images),
        test_fraction=data.test_fraction,
    )
    return drawn[[name for name in (*sample_table.COLUMNS, sample_table.GROUP) if name in drawn]]
