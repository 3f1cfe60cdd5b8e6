"""Good data, a finished run and its checkpoint: what the hostile cases are made of."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from harness import must_succeed

SPECIES, IMAGES, TRAIN = 4, 6, 4


@dataclass(frozen=True)
class World:
    """Folders with good content, which every case copies before it damages it."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "World":
        """Draw birds, train on them, evaluate: some ten seconds."""
        world = cls(folder)
        folder.mkdir(parents=True)
        for verb in ("data", "train", "eval"):
            must_succeed(folder, verb, *world.overrides(folder))
        return world

    @staticmethod
    def overrides(folder: Path, *more: str) -> list[str]:
        """A job of a second or two with its data and runs below a folder."""
        return [
            "data.source=synthetic",
            f"data.root={folder / 'data'}",
            f"data.synthetic={{species: {SPECIES}, images_per_species: {IMAGES}, train_per_species: {TRAIN}}}",
            "data.synthetic.long_side_px=64",
            "data.val_fraction=0.25",
            "data.resize_px=40",
            "data.image_px=32",
            "data.workers=0",
            "model.name=test_resnet",
            "model.pretrained=false",
            "optim.batch_size=4",
            "optim.lr=0.02",
            "train.epochs=2",
            "train.precision=fp32",
            "train.device=cpu",
            "report.gallery=4",
            f"run.root={folder / 'runs'}",
            "run.name=good",
            *more,
        ]

    @property
    def raw(self) -> Path:
        """The drawn birds as an unpacked archive in CUB's layout."""
        (path,) = (self.folder / "data").glob("*/raw")
        return path

    @property
    def run(self) -> Path:
        """The finished run."""
        return self.folder / "runs" / "good"

    def copy(self, folder: Path, *names: str) -> None:
        """Copy `data`, `runs` or both into a case's folder."""
        for name in names:
            shutil.copytree(self.folder / name, folder / name, symlinks=True)
