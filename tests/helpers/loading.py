"""The images of the drawn birds, as a loader serves them."""

from pathlib import Path

from pipeline.data import loader, prepare
from pipeline.data.transforms import Augmentation, CentreCrop
from tests.helpers import tiny


def images_of(birds: Path, view: Augmentation | CentreCrop) -> loader.Images:
    """The images of the tiny job below a folder, through a view."""
    data = prepare.load(tiny.config(birds))
    return loader.Images(data.store, data.samples["label"].to_numpy("int64", copy=True), view)
