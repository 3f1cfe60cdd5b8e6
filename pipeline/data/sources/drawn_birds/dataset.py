"""The embedded data set: drawn birds in the layout of the CUB-200-2011 archive.

Each picture is a function of (seed, class, image) alone, so the files have the same bytes
whatever the number of processes that write them.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import cv2

from pipeline.common import console, hardware, seeding, signals
from pipeline.common.errors import DataError
from pipeline.data.sources.cub_layout import CubLayout
from pipeline.data.sources.drawn_birds import bird, faults
from pipeline.data.sources.drawn_birds.species import Species, attributes, species_list

GREY_SHARE = 1 / 150  # CUB has a few greyscale JPEGs; a reader has to cope with them
JPEG_QUALITY = 93
MAX_SPECIES = 200
MIN_SIDE_PX = 32
SMALL_SET = 300  # images that are drawn sooner than a pool of processes has started


def write(
    folder: Path,
    *,
    species: int,
    images_per_species: int,
    train_per_species: int,
    long_side_px: int,
    seed: int,
    flipped_labels: float = 0.0,
    duplicates: float = 0.0,
    workers: int | None = None,
) -> None:
    """Write the set into `folder` (existing and empty) in the layout of the CUB-200-2011 archive.

    Args:
        long_side_px: the longer side of every picture.
        flipped_labels, duplicates: shares (0..0.5) of the images that get a known fault, see `faults`.
        workers: processes that draw; None: all cores for a large set, this process alone for a small one.

    Raises:
        DataError: an argument is out of range.
    """
    _check(species, images_per_species, train_per_species, long_side_px)
    kinds = species_list(species, seed)
    total = species * images_per_species
    if workers is None:
        workers = hardware.cores() if total > SMALL_SET else 1
    root = folder / "CUB_200_2011"
    for kind in kinds:
        (root / "images" / kind.name).mkdir(parents=True)
    draw = partial(
        _draw_class, images=root / "images", count=images_per_species, long_side_px=long_side_px, seed=seed
    )
    rows: list[faults.Row] = []
    with console.bar("draw", total=total) as bar:
        for class_rows in _draw_classes(draw, kinds, workers):
            rows += class_rows
            bar.advance(len(class_rows))
    rows = faults.duplicate(root, rows, species, duplicates, seed)
    _write_lists(root, kinds, rows)
    faults.flip_labels(root, species, flipped_labels, seed)
    _write_split(root, species, images_per_species, train_per_species, seed)
    _write_attributes(folder, kinds)


def _check(species: int, images_per_species: int, train_per_species: int, long_side_px: int) -> None:
    if not 2 <= species <= MAX_SPECIES:
        raise DataError(f"drawn birds: {species} species were asked for; choose 2 to {MAX_SPECIES}")
    if images_per_species < 2:
        raise DataError(f"drawn birds: {images_per_species} images a species are too few; choose 2 or more")
    if not 1 <= train_per_species < images_per_species:
        raise DataError(
            f"drawn birds: {train_per_species} of {images_per_species} images a species cannot be for "
            f"training; choose 1 to {images_per_species - 1}, so that some are left for the test"
        )
    if long_side_px < MIN_SIDE_PX:
        raise DataError(
            f"drawn birds: a long side of {long_side_px} px is too small; choose {MIN_SIDE_PX} or more"
        )


def _draw_classes(
    draw: Callable[[Species, int], list[faults.Row]], kinds: Sequence[Species], workers: int
) -> Iterator[list[faults.Row]]:
    """The rows of each class in turn; several workers are processes of their own."""
    numbers = range(1, len(kinds) + 1)
    if workers == 1:
        yield from map(draw, kinds, numbers)
    else:
        try:
            with ProcessPoolExecutor(workers, get_context("spawn"), _init_worker) as pool:
                yield from pool.map(draw, kinds, numbers)
        except BrokenProcessPool as error:
            raise DataError(
                "drawn birds: a process that draws was killed, most often because the memory is full; free some and "
                "run again"
            ) from error


def _init_worker() -> None:
    """Leave signals to the process that wants the birds, and end with it: an executor's processes would stay."""
    cv2.setNumThreads(0)
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a process that draws has a parent"
    parent.join()
    os._exit(0)


def _draw_class(
    kind: Species, class_number: int, *, images: Path, count: int, long_side_px: int, seed: int
) -> list[faults.Row]:
    """Draw and write all images of one species; the path, box and parts of each."""
    rows: list[faults.Row] = []
    for number in range(1, count + 1):
        rng = seeding.generator("bird", seed, class_number, number)
        drawing = bird.draw(kind, rng, long_side_px)
        grey = seeding.generator("grey bird", seed, class_number, number).random() < GREY_SHARE
        code = cv2.COLOR_RGB2GRAY if grey else cv2.COLOR_RGB2BGR
        picture = cv2.cvtColor(drawing.image, code)
        done, content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not done:
            raise RuntimeError(f"OpenCV cannot write a JPEG of {picture.shape}")
        path = f"{kind.name}/{kind.name[4:]}_{number:04d}.jpg"
        (images / path).write_bytes(content.tobytes())
        rows.append((path, drawing.box, drawing.parts))
    return rows


def _write_lists(root: Path, kinds: Sequence[Species], rows: Sequence[faults.Row]) -> None:
    """Write CUB's lists of the images; ids run from 1 through the classes."""
    numbers = {kind.name: number for number, kind in enumerate(kinds, 1)}
    _lines(root / "images.txt", [path for path, _, _ in rows])
    _lines(root / "image_class_labels.txt", [numbers[path.split("/")[0]] for path, _, _ in rows])
    _lines(root / "classes.txt", [kind.name for kind in kinds])
    _lines(root / "bounding_boxes.txt", [" ".join(f"{value:.1f}" for value in box) for _, box, _ in rows])
    (root / "parts").mkdir()
    _lines(root / "parts" / "parts.txt", bird.PARTS)
    with (root / "parts" / "part_locs.txt").open("w", encoding="ascii", newline="\n") as stream:
        for image, (_, _, parts) in enumerate(rows, 1):
            for part, (x, y, visible) in enumerate(parts, 1):
                stream.write(f"{image} {part} {x:.1f} {y:.1f} {visible}\n")


def _write_split(root: Path, species: int, images: int, train: int, seed: int) -> None:
    """Write which images are for training (1) and which for the test (0), drawn in each class."""
    flags: list[int] = []
    for class_number in range(1, species + 1):
        order = seeding.generator("bird split", seed, class_number).permutation(images)
        flags += [int(index < train) for index in order]
    _lines(root / "train_test_split.txt", flags)


def _write_attributes(folder: Path, kinds: Sequence[Species]) -> None:
    """Write the names of the attributes, and in percent how far each class has each of them."""
    table = [attributes(kind) for kind in kinds]
    _lines(folder / "attributes.txt", list(table[0]))
    (folder / "CUB_200_2011" / "attributes").mkdir()
    rows = [" ".join("100.0" if has else "0.0" for has in values.values()) + "\n" for values in table]
    path = folder / "CUB_200_2011" / "attributes" / "class_attribute_labels_continuous.txt"
    path.write_text("".join(rows), encoding="ascii", newline="\n")


def _lines(path: Path, values: Sequence[object]) -> None:
    """Write `1 value`, `2 value`, ... as all of CUB's lists are."""
    text = "".join(f"{number} {value}\n" for number, value in enumerate(values, 1))
    path.write_text(text, encoding="ascii", newline="\n")


class DrawnBirds(CubLayout):
    """The data set that `data.synthetic` describes."""

    verb = "draw"

    @property
    def folder_name(self) -> str:
        """The settings that make one set differ from another."""
        drawn = self.config.synthetic
        size = f"{drawn.species}x{drawn.images_per_species}-{drawn.train_per_species}-{drawn.long_side_px}px"
        planted = "".join(
            f"-{fault}{share:g}"
            for fault, share in (("flipped", drawn.flipped_labels), ("doubled", drawn.duplicates))
            if share
        )
        return f"synthetic-{size}-seed{drawn.seed}{planted}"

    @property
    def inputs(self) -> Mapping[str, Any] | None:
        """All settings."""
        return self.config.synthetic.model_dump()

    def fetch(self, output: Path) -> None:
        """Draw the set."""
        write(output, **self.config.synthetic.model_dump())

    @property
    def expected(self) -> tuple[int, int, int]:
        """As the settings say."""
        drawn = self.config.synthetic
        train = drawn.species * drawn.train_per_species
        return drawn.species, train, drawn.species * drawn.images_per_species - train

    def bytes_to_fetch(self) -> int:
        """A byte a pixel of a square picture, which is more than a JPEG takes."""
        drawn = self.config.synthetic
        return drawn.species * drawn.images_per_species * drawn.long_side_px**2
