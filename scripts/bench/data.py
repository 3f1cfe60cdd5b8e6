"""The data stage on pictures in class folders, against decoding and resizing alone on all cores; and its second call.

The pictures are drawn, with CUB's sizes (the longer side has 500 px), or those of the command line, unpacked; they are
in the page cache, on both sides. The contender is a pool of processes, one a core, that keeps nothing.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from measuring import ROUNDS, Measurement, Options, images_per_s, in_pairs, of_runs
from PIL import Image

from pipeline.common import console, hardware
from pipeline.config.load import load_config
from pipeline.data import prepare
from pipeline.data.pictures import Layout, resized
from pipeline.data.sources.source import source_of

DRAWN = "data.synthetic={species: 200, images_per_species: 20, train_per_species: 15, long_side_px: 500}"
TINY = "data.synthetic={species: 3, images_per_species: 8, train_per_species: 5, long_side_px: 120}"
PICTURES_AT_ONCE = 16  # that a process of the contender is given


def measure(options: Options) -> Iterator[Measurement]:
    """Both sides in turn; each call of ours makes a store of its own, down to the disk."""
    console.mute()
    given = options.config(*[TINY if options.tiny else DRAWN] * (not options.has_data)).data
    images = source_of(given).images(prepare.fetch(given))
    paths = sorted(images.rglob("*.jpg"))
    layout, cores, rounds = Layout.of(given), hardware.cores(), 1 if options.tiny else ROUNDS
    what = f"{len(paths)} pictures in folders, stored at {given.resize_px} px"
    with (
        ProcessPoolExecutor(cores, multiprocessing.get_context("fork")) as pool,
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
    ):

        def ours() -> float:
            with tempfile.TemporaryDirectory(dir=folder) as root:
                os.sync()  # what others left to be written
                config = load_config(None, words(images, Path(root), layout))
                return images_per_s(len(paths), lambda: prepare.prepare(config))

        def alone(work: Callable[[Path], int]) -> float:
            return images_per_s(len(paths), lambda: sum(pool.map(work, paths, chunksize=PICTURES_AT_ONCE)))

        with_opencv = partial(decode_and_resize, layout=layout)
        with_pillow = partial(decode_and_resize_with_pillow, layout=layout)
        alone(with_opencv)  # its processes begin, and files come into memory
        yield Measurement(
            "data",
            what,
            unit="images/s",
            against=f"Pillow's decoding and the same resizing alone, {cores} processes",
            goal=0.9,
            **in_pairs(ours, lambda: alone(with_opencv), rounds),
        )
        yield Measurement(
            "data",
            what,
            unit="images/s",
            against=f"Pillow's decoding and bilinear resizing alone, {cores} processes",
            **in_pairs(ours, lambda: alone(with_pillow), rounds),
        )
        yield second_call(images, Path(folder), layout, len(paths), rounds)


def words(images: Path, root: Path, layout: Layout) -> list[str]:
    """The overrides for pictures of a folder and a place for what is made of them."""
    made = [f"data.root={root}", f"data.resize={layout.resize}", f"data.resize_px={layout.resize_px}"]
    return ["data.source=folder", f"data.path={images}", f"data.store={layout.format}", *made]


def decode_and_resize(path: Path, layout: Layout) -> int:
    """1, for the picture that was made."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    resized(pixels, *layout.size(pixels.shape[1], pixels.shape[0]))
    return 1


def decode_and_resize_with_pillow(path: Path, layout: Layout) -> int:
    """1, for the picture that was made."""
    with Image.open(path) as picture:
        size = layout.size(*picture.size)
        np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR))
    return 1


def second_call(images: Path, folder: Path, layout: Layout, count: int, rounds: int) -> Measurement:
    """Seconds of the whole command, where all is made already."""
    command = [sys.executable, "-m", "pipeline", "data", *words(images, folder / "kept", layout)]
    seconds = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        subprocess.run(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - began)
    return Measurement(
        part="data",
        what=f"a second call of the data stage, {count} pictures, the process's start included",
        **of_runs(seconds[1:]),
        unit="s",
        goal=1.0,
        better="at most",
    )
