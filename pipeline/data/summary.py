"""What `plumage data` says of a data set: its size, what was decided for the user, and what is missing."""

from pathlib import Path

import pandas as pd

from pipeline.common import console, files, tables
from pipeline.common.errors import name_some
from pipeline.config.data import DataConfig
from pipeline.data import corrections, groups, image_store, sample_table, splits
from pipeline.data.sources.source import source_of
from pipeline.data.table_name import beside
from pipeline.data.taxonomy import Taxonomy

ASKED_AT_MOST = 100
"""images of each class that `data` asks for, so that some of them validate"""


def show(
    samples: pd.DataFrame,
    taxonomy: Taxonomy | None,
    data: DataConfig,
    samples_path: Path,
    store_folder: Path,
    root: Path | None,
    *,
    is_refit: bool = False,
) -> None:
    """Say what is in a sample table.

    Args:
        samples_path: of the table.
        store_folder: of the store, which lists the pictures that were left out, too.
        root: the folder of the source, see `prepare.find_root`; None: it is not there.
        is_refit: validation images train, see `prepare.load`.
    """
    counts = samples["split"].value_counts()
    smallest = int(samples[["width", "height"]].min(axis=1).to_numpy().argmin())
    width, height = samples["width"].iloc[smallest], samples["height"].iloc[smallest]
    console.show_table(
        f"{data.source}: {samples_path}",
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
    if taxonomy is not None:
        console.say(f"taxonomy  {taxonomy}")
    remarks = _remarks(samples, data, root)
    for sentence in remarks if is_refit else [*remarks, *_no_validation(samples, data)]:
        console.say(sentence)
    if data.on_bad == "skip":
        console.say(_skipped(samples_path, store_folder))
    if data.corrections is not None:
        console.say(corrections.sentence(data, beside(samples_path, "corrected")))
    _warn(samples)


def _warn(samples: pd.DataFrame) -> None:
    for sentence in sample_table.gaps(samples):
        console.warn(sentence)
    if outside := sample_table.boxes_outside(samples):
        console.warn(
            f"the boxes of image ids {name_some(outside)} lie outside their pictures, in whole or in part; give them "
            "in pixels of the picture as it is shown"
        )


def _no_validation(samples: pd.DataFrame, data: DataConfig) -> list[str]:
    """That no image validates, if some were asked for: why, and what to do."""
    if (samples["split"] == "val").any() or not (data.val_fraction or data.folds or data.val_images):
        return []
    return [f"val  none: {_why_no_validation(samples, data)}"]


def _why_no_validation(samples: pd.DataFrame, data: DataConfig) -> str:
    kept = "training keeps its last epoch"
    if groups.of(samples) is not None:
        return f"no whole group could be held out; {kept}; give more groups of each class"
    if data.folds is not None:
        return (
            f"fold {data.fold} of {data.folds} is empty, as each class has too few images; {kept}; choose fewer folds "
            "(data.folds)"
        )
    why = (
        f"each class has 1 image left for training, which data.val_fraction={data.val_fraction:g} never takes"
    )
    if not (samples["official"] == sample_table.EITHER).any():
        return f"{why}; {kept}; give 2 training images or more of each class"
    if not data.test_fraction:
        return f"{why}; {kept}; give 2 images or more of each class"
    counts = range(2, ASKED_AT_MOST + 1)
    least = next((n for n in counts if n - splits.count_held_out(n, data.test_fraction) >= 2), None)
    more = "" if least is None else f"give {least} images or more of each class, or "
    return f"{why}; {kept}; {more}set data.test_fraction=0"


def _skipped(samples_path: Path, store_folder: Path) -> str:
    kept, path = store_folder / image_store.SKIPPED, beside(samples_path, "skipped")
    listed = path if path.is_file() else kept  # a list for the user, who may have moved it
    return f"skipped  {len(tables.read_csv(kept)):,} pictures that cannot be read, listed in {listed}"


def _remarks(samples: pd.DataFrame, data: DataConfig, root: Path | None) -> list[str]:
    """What was decided for the user: a test that was drawn, validation images that the data set has, files left out."""
    sentences = [] if root is None else source_of(data).remarks(root)
    drawn = int(((samples["official"] == sample_table.EITHER) & (samples["split"] == "test")).sum())
    if drawn:
        sentences.append(
            f"test  the data set has none, so {drawn:,} images were drawn: {data.test_fraction:.4g} of each class "
            "(data.test_fraction), the same for every seed"
        )
    if own := int((samples["official"] == "val").sum()):
        sentences.append(f"val  the {own:,} images of the data set's own; data.val_fraction is not used")
    return sentences
