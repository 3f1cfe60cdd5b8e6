"""Pictures that a case gives as folders or as a table, and what is right of the data that are made of them."""

import io
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from archives import check_store
from harness import Case, Failed, call, judge
from PIL import Image
from world import World

Action = Callable[[Path], object]
CLASSES = ["crow", "great tit", "gull"]
PICTURES = 4  # of each class
SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
ENDINGS = (".png", ".jpg", ".heic")
OPTIONS = [
    *[[]] * 6, ["data.on_bad=skip"], ["data.on_bad=skip"], ["data.test_fraction=0"], ["data.test_fraction=0.5"],
    ["data.val_fraction=0"], ["data.folds=2"], ["data.test_images=2"], ["data.resize=short_side"],
]  # fmt: skip


@dataclass
class Given:
    """What a case gives: files by path below its folder, and what is done to them when they are there."""

    files: dict[str, bytes] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    path: str = "mine"
    """`data.path`, relative to the folder of the case"""

    def write(self, folder: Path) -> None:
        """Write it all into a folder."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        for action in self.actions:
            action(folder / "mine")


def png(draw: random.Random, width: int = 24, height: int = 20) -> bytes:
    """A picture of noise."""
    stream = io.BytesIO()
    noise = np.frombuffer(draw.randbytes(3 * width * height), np.uint8).reshape(height, width, 3)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


def class_folders(draw: random.Random, top: str = "mine", count: int = PICTURES) -> dict[str, bytes]:
    """Class folders with pictures."""
    return {f"{top}/{name}/{n}.png": png(draw) for name in CLASSES for n in range(count)}


def case_of(
    world: World,
    draw: random.Random,
    what: str,
    source: str,
    given: Given,
    wrong: Callable[[pd.DataFrame], str | None],
    count: Callable[[Path], int] | None,
) -> Case:
    """`data` from what is given, which stays as it is; a refusal makes nothing.

    Args:
        wrong: what is wrong with the sample table, or None.
        count: the number of pictures that are to be taken, from the folder; None: any.
    """
    options: Sequence[str] = draw.choice(OPTIONS)
    takes_all = not any("on_bad" in word or "test_images" in word for word in options)

    def body(folder: Path) -> str:
        given.write(folder)
        before = state(folder / "mine")
        words = [word for word in world.overrides(folder) if not word.startswith("data.s")]
        words += [f"data.source={source}", f"data.path={folder / given.path}", *options]
        outcome = call(folder, "data", *words)
        if before != state(folder / "mine"):
            raise Failed(f"the user's folder was written to: {outcome.explain()}")
        verdict = judge(outcome, lambda _: _right(folder, wrong, count if takes_all else None))
        if verdict == "refused" and (made := list(folder.glob("data/*/samples*.csv"))):
            raise Failed(f"refused, and made {made}: {outcome.explain()}")
        return verdict

    return Case(f"{what}, {' '.join(options)}", body)


def _right(
    folder: Path, wrong: Callable[[pd.DataFrame], str | None], count: Callable[[Path], int] | None
) -> str | None:
    (table,) = folder.glob("data/*/samples-*.csv")
    texts = dict.fromkeys(["path", "class_name", "group"], str)
    samples = pd.read_csv(table, dtype=texts, keep_default_na=False)
    if count is not None and len(samples) != (due := count(folder / "mine")):
        return f"{len(samples)} of {due} pictures were taken"
    return wrong(samples) or check_store(folder, samples, [folder / "mine"])


def pictures_in(folder: Path) -> int:
    """The number of files that are pictures by their names, and not hidden."""
    found = 0
    for _, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += sum(name.lower().endswith(ENDINGS) and not name.startswith(".") for name in files)
    return found


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, size and time of everything in a folder."""
    found = {}
    for top, folders, files in os.walk(folder):
        for name in [".", *folders, *files]:
            stat = os.lstat(Path(top) / name)
            found[f"{top}/{name}"] = stat.st_mode, stat.st_size, stat.st_mtime_ns
    return found
