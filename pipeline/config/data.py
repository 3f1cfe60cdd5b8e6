"""`data`: the data set, its images, splits, crops and loaders."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.types import Count, Fraction, Section, Share, UserPath

Channel = Annotated[int, Field(ge=0, le=255)]
MD5_PATTERN = r"^[0-9a-f]{32}$"
PlantedShare = Annotated[float, Field(ge=0, le=0.5)]


class SyntheticConfig(Section):
    species: Annotated[int, Field(ge=2, le=200)] = 24
    """number of drawn species"""
    images_per_species: Annotated[int, Field(ge=2)] = 50
    """number of drawn images of each species"""
    train_per_species: Count = 35
    """number of these that are training images; the others are test images"""
    long_side_px: Annotated[int, Field(ge=64, le=1024)] = 256
    """longer side of a drawn image, px"""
    seed: int = 0
    """seed of the drawn species and images"""
    flipped_labels: PlantedShare = 0.0
    """share of images listed under a wrong species, to test the audit; a file lists the true ones"""
    duplicates: PlantedShare = 0.0
    """share of images that are near-copies of others of their species, to test the audit; a file lists them"""

    @model_validator(mode="after")
    def _check(self) -> "SyntheticConfig":
        if self.train_per_species >= self.images_per_species:
            raise ValueError(
                f"train_per_species {self.train_per_species} must be below images_per_species "
                f"{self.images_per_species}: the rest are the test images"
            )
        return self


class ResizingStage(Section):
    """A stage of progressive resizing: the first epochs, at a smaller image size."""

    until_epoch: Count
    """last epoch of the stage"""
    image_px: Annotated[int, Field(ge=16)]
    """side to which the crop of data.image_px is downscaled, px"""
    images_per_step: Count | None = None
    """images per optimizer step; null: as set in `optim`; the learning rate is not scaled"""


OWN = {"folder": "FOLDER", "csv": "FILE", "hugging_face": "FOLDER"}
"""sources of a user's own pictures, and what data.path names for each"""


NOT_DOWNLOADED = {
    "nabirds": "needs a form (dl.allaboutbirds.org/nabirds); unpack it and set data.archive to the folder nabirds",
    "stanford_dogs": "is left to you (vision.stanford.edu/aditya86/ImageNetDogs): set data.archive to the folder with "
    "images.tar, annotation.tar and lists.tar, or with what they hold",
    "stanford_cars": "is gone; set data.archive to a copy of the folder stanford_cars with cars_train, cars_test, "
    "devkit and cars_test_annos_withlabels.mat",
}
"""published sets that are not downloaded: why, and what to do"""


def _path_problem(source: str) -> str:
    if source in OWN:
        return f"source {source} needs the pictures: set data.path={OWN[source]}"
    return f"path is for your own pictures, and source is {source}; set data.source={', '.join(OWN)}, or drop path"


class DataConfig(Section):
    source: Literal[
        "cub200", "folder", "csv", "hugging_face", "synthetic", "digits", "mnist", "cifar10",
        "fgvc_aircraft", "oxford_pets", "flowers102", "food101",
        "nabirds", "stanford_dogs", "stanford_cars",
    ] = "cub200"  # fmt: skip
    """data set; folder, csv, hugging_face: your own; synthetic: drawn birds; digits: from MNIST; others: as published"""
    path: UserPath | None = None
    """your own pictures: folder (source folder, hugging_face), table (csv) or hub name; nothing is written there"""
    root: UserPath = Path("data")
    """folder of all data sets"""
    archive: UserPath | None = None
    """CUB archive or folder with its content, or the folder of another published set; null: download"""
    archive_md5: Annotated[str, Field(pattern=MD5_PATTERN)] | None = None
    """MD5 digest of the archive; null: the official one"""
    on_bad: Literal["error", "skip"] = "error"
    """unreadable images; error: list them all and stop; skip: omit and list them"""
    corrections: UserPath | None = None
    """label corrections: the audit's corrections.csv, a table of id and label (or `drop`), or CUB++; null: none"""
    taxonomy: UserPath | None = None
    """hierarchy, CSV: class, then one column per rank, fine to coarse (genus, family); null: the data set's, if any"""
    synthetic: SyntheticConfig = SyntheticConfig()
    test_fraction: Fraction = 0.2
    """share of each class held out for test if your pictures have no test split, the same for all seeds; 0: no test"""
    val_fraction: Fraction = 0.1
    """share of each training class held out if the data set has no validation split; 0: none, the last epoch is kept"""
    folds: Annotated[int, Field(ge=2)] | None = None
    """number of folds to cut train into, one of them for validation, instead of val_fraction; null: no folds"""
    fold: Annotated[int, Field(ge=0)] = 0
    """index of the validation fold, from 0"""
    split_seed: Annotated[int, Field(ge=0)] | None = None
    """seed of the validation split alone, so that runs with several seeds share one; null: seed"""
    train_images: Count | None = None
    """number of training images, the same share of each class; null: all that are not held out"""
    val_images: Count | None = None
    """number of validation images, the same share of each class, instead of val_fraction; null: val_fraction"""
    test_images: Count | None = None
    """number of test images, the same share of each class, the same for every seed; null: the official test set"""
    resize: Literal["squash", "short_side"] = "squash"
    """resizing of stored images; squash: to a square; short_side: keep the aspect ratio"""
    resize_px: Annotated[int, Field(ge=16)] = 512
    """side of the square, or short side, of a stored image, px"""
    store: Literal["packed", "jpeg"] = "packed"
    """format of stored images; packed: uint8 pixels, memory-mapped; jpeg: quality 95, about 8 times smaller, slower"""
    background: tuple[Channel, Channel, Channel] = (255, 255, 255)
    """colour behind transparent pixels, RGB, each 0 to 255"""
    image_px: Annotated[int, Field(ge=16)] = 448
    """side of the square crop that the model sees, px"""
    pad_px: Annotated[int, Field(ge=0)] = 0
    """width of the black border added to a stored image before the crop, px"""
    crop: Literal["random", "random_resized"] = "random"
    """training crop; random: of image_px; random_resized: of a random area and aspect ratio, resized to image_px"""
    crop_area_min: Annotated[float, Field(gt=0, le=1)] = 0.25
    """smallest area of a random_resized crop, share of the image's"""
    flip: bool = True
    """horizontal mirroring of half of the training images"""
    color_jitter: Fraction = 0.0
    """largest relative change of brightness, contrast and saturation of training images"""
    auto_augment: Literal["none", "trivial", "rand"] = "none"
    """policy; trivial: TrivialAugment (wide); rand: RandAugment (2 x magnitude 9); 9 to 30 times the cost of a crop"""
    random_erasing: Share = 0.0
    """share of training images in which a rectangle is replaced by noise"""
    sampler: Literal["uniform", "class_balanced"] = "uniform"
    """order of an epoch; uniform: every image once; class_balanced: every class equally often"""
    progressive: tuple[ResizingStage, ...] = ()
    """stages with smaller images (progressive resizing), such as [{until_epoch: 30, image_px: 224}]"""
    workers: Annotated[int, Field(ge=0)] | None = None
    """loader processes per rank; null: chosen by the number of cores"""

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if (self.path is None) == (self.source in OWN):
            raise ValueError(_path_problem(self.source))
        if self.source in NOT_DOWNLOADED and self.archive is None:
            raise ValueError(f"source {self.source}: its download {NOT_DOWNLOADED[self.source]}")
        if self.image_px > self.resize_px + 2 * self.pad_px:
            padded = f" + 2 pad_px {self.pad_px}" if self.pad_px else ""
            raise ValueError(f"image_px {self.image_px} is larger than resize_px {self.resize_px}{padded}")
        if self.folds is not None and self.val_images is not None:
            raise ValueError("folds and val_images both say what validates; drop one of the two")
        if self.folds is None and self.fold:
            raise ValueError(
                f"fold {self.fold} is one of data.folds, which is null; give folds, or drop fold"
            )
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(
                f"fold {self.fold} does not exist; with folds={self.folds} they are 0 to {self.folds - 1}"
            )
        largest = max((stage.image_px for stage in self.progressive), default=0)
        if largest > self.image_px:
            raise ValueError(f"progressive: image_px {largest} is larger than data.image_px {self.image_px}")
        ends = [stage.until_epoch for stage in self.progressive]
        if ends != sorted(set(ends)):
            raise ValueError(f"progressive: until_epoch must rise from stage to stage, and is {ends}")
        return self

    @property
    def holds_out(self) -> bool:
        """Whether keys hold part of train out for validation, where the data set has none of its own."""
        return self.folds is not None or self.val_images is not None or self.val_fraction > 0

    def stage(self, epoch: int) -> ResizingStage | None:
        """The progressive stage of an epoch (from 0); None: images have their full size."""
        return next((stage for stage in self.progressive if epoch < stage.until_epoch), None)
