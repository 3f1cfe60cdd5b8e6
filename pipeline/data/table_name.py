"""The name of a sample table says how its images were split, left out and corrected; lists about it lie beside it."""

import re
from pathlib import Path

from pipeline.config.data import DataConfig
from pipeline.config.schema import Config
from pipeline.data import corrections

NAME = re.compile(
    r"samples-(?:fold(?P<fold>\d+)of(?P<folds>\d+)|val(?:(?P<val_images>[1-9]\d*)|(?P<val_fraction>[\d.e-]+)))"
    r"(?:-train(?P<train_images>\d+))?(?:-test(?P<test_images>\d+))?(?:-test(?P<test_fraction>[\d.e-]+))?"
    r"-seed(?P<seed>\d+)(?:-(?P<on_bad>skip))?(?:-corrected-(?P<corrections>[0-9a-f]{8}))?\.csv"
)
"""what `table_name` writes; its groups are keys of `data`, and the seed of the split"""


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


def prepared_instead(samples_path: Path) -> str:
    """Beside a table that is missing, the nearest one: "; prepared here is NAME (KEYS)"; "" where there is none.

    KEYS are those in which it differs from the missing one, with its values.
    """
    wanted = _keys(samples_path.name)
    others = {path.name: _keys(path.name) for path in samples_path.parent.glob("samples-*.csv")}
    differing = {
        name: [f"{key}={value}" for key, value in keys.items() if value != wanted.get(key)]
        for name, keys in others.items()
        if keys and wanted
    }
    if not differing:
        return ""
    nearest = min(differing, key=lambda name: (len(differing[name]), name))
    return f"; prepared here is {nearest} ({', '.join(differing[nearest])})"


def _keys(name: str) -> dict[str, str]:
    """The keys that the name of a sample table tells, each with its value; empty: it is no name of one."""
    found = NAME.fullmatch(name)
    if found is None:
        return {}
    keys = {**found.groupdict(), "on_bad": found["on_bad"] or "error"}
    keys["test_fraction"] = keys["test_fraction"] or str(DataConfig.model_fields["test_fraction"].default)
    if keys["corrections"]:
        keys["corrections"] = f"a file of digest {keys['corrections']}"
    for key in ("fold", "val_fraction"):  # tell nothing where folds, or validation images, say otherwise
        if keys[key] is None:
            del keys[key]
    return {key if key == "seed" else f"data.{key}": value or "null" for key, value in keys.items()}


def beside(samples_path: Path, what: str) -> Path:
    """The list of the images of a sample table that were "skipped" or "corrected"."""
    return samples_path.with_name(samples_path.name.replace("samples", what, 1))
