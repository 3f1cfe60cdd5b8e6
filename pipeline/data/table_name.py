"""The name of a sample table says how its images were split, left out and corrected; lists about it lie beside it."""

from pathlib import Path

from pipeline.config.data import DataConfig
from pipeline.config.schema import Config
from pipeline.data import corrections


def table_name(config: Config) -> str:
    """`samples-val0.1-seed0.csv`; a key that changes the table and is not at its default adds a part.

    Raises:
        DataError: the file of corrections is missing or wrong.
    """
    data = config.data
    share = f"{data.val_fraction:g}"
    if float(share) != data.val_fraction:  # more than six digits
        share = repr(data.val_fraction)
    held_out = f"fold{data.fold}of{data.folds}" if data.folds else f"val{data.val_images or share}"
    sizes = {"train": data.train_images, "test": data.test_images}
    reduced = "".join(f"-{split}{count}" for split, count in sizes.items() if count is not None)
    if data.path is not None and data.test_fraction != DataConfig.model_fields["test_fraction"].default:
        reduced += f"-test{data.test_fraction!r}"
    skip = "-skip" if data.on_bad == "skip" else ""
    decided = corrections.of(data)
    corrected = "" if decided is None else f"-corrected-{decided.digest[:8]}"
    return f"samples-{held_out}{reduced}-seed{config.split_seed}{skip}{corrected}.csv"


def beside(samples_path: Path, what: str) -> Path:
    """The list of the images of a sample table that were "skipped" or "corrected"."""
    return samples_path.with_name(samples_path.name.replace("samples", what, 1))
