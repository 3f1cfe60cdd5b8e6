"""Whether the data of a run are those that it was trained and evaluated on, to the byte."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline.common.errors import DataError, name_some
from pipeline.config.schema import Config
from pipeline.data import pictures, prepare, sample_table, stages
from pipeline.data.prepare import Prepared
from pipeline.data.sources.source import source_of
from pipeline.protocol.claims import Claim

ABOUT = "data"


class Recorded(NamedTuple):
    """What a file of the run says of its data: digests of the sample table and of the pictures, where it has them."""

    place: str
    samples: str | None
    pictures: str | None


def check(config: Config, recorded: list[Recorded]) -> tuple[Claim, Prepared | None]:
    """Compare the prepared data with their stamps and with what the run says; the data, where they can be read."""
    missing = [path for path in prepare.output_paths(config) if not path.exists()]
    if missing:
        why = f"{missing[0]}: missing; prepare the data (`plumage data`), or name their place with data.root"
        return Claim.unchecked(ABOUT, why), None
    try:
        data = prepare.load(config)
    except DataError as error:
        return Claim(ABOUT, "fails", [str(error)]), None
    faults = [*_changed_files(config, data), *_other_digests(config, data, recorded)]
    compared = "the sample table and all stored pictures have the bytes that they were made with"
    if names := [each.place for each in recorded if each.samples]:
        compared += f", and the digests in {', '.join(names)}"
    return Claim.of(ABOUT, faults, compared), data


def _changed_files(config: Config, data: Prepared) -> Iterator[str]:
    for path in prepare.output_paths(config):
        if what := stages.changes(path, verify=True):
            yield f"{path.name}: {what}"
            if path.is_dir() and (changed := changed_pictures(config, data, range(len(data.samples)))):
                yield f"{path.name}: other pictures than their files give, for image ids {name_some(changed)}"


def _other_digests(config: Config, data: Prepared, recorded: list[Recorded]) -> Iterator[str]:
    samples, stored = sample_table.digest(data.samples), prepare.pictures_digest(config)
    for each in recorded:
        if each.samples and each.samples != samples:
            yield f"{each.place}: names another sample table (images, labels, splits) than the one that is here"
        if each.pictures and each.pictures != stored:
            yield f"{each.place}: names other stored pictures than those that are here"


def check_pictures(config: Config, data: Prepared, images: int) -> Claim:
    """Whether some pictures of the store, evenly spread, are what their files give when they are decoded again."""
    about, n = "pictures", len(data.samples)
    if prepare.find_root(config.data) is None:
        return Claim.unchecked(about, "the files that the store was made from are not here")
    rows = np.unique(np.linspace(0, n - 1, min(images, n)).round().astype(np.int64)).tolist()
    changed = changed_pictures(config, data, rows)
    faults = [f"image {image}: its file gives another picture than the store has" for image in changed]
    return Claim.of(about, faults, f"{len(rows):,} of {n:,} files, decoded again, give the stored pictures")


def changed_pictures(config: Config, data: Prepared, rows: Iterable[int]) -> list[int]:
    """The ids of the images, among rows of the sample table, whose file gives other pixels than the store has.

    Empty where the files are not at hand.
    """
    root = prepare.find_root(config.data)
    if root is None:
        return []
    folder, layout = source_of(config.data).images(root), prepare.layout(config.data)
    changed = []
    for row in rows:
        sample = data.samples.iloc[row]
        try:
            same = np.array_equal(pictures.picture(folder / sample["path"], layout), data.store[row])
        except (pictures.PictureError, DataError):
            same = False
        if not same:
            changed.append(int(sample["id"]))
    return changed
