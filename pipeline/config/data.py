"""`data`: the data set, its pictures, splits, crops and loaders."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.types import Count, Fraction, Section, Share

PlantedShare = Annotated[float, Field(ge=0, le=0.5)]


class SyntheticConfig(Section):
    species: Annotated[int, Field(ge=2, le=200)] = 24
    """number of drawn species"""
    images_per_species: Annotated[int, Field(ge=2)] = 50
    """drawn images a species"""
    train_per_species: Count = 35
    """how many of them are official training images"""
    long_side_px: Annotated[int, Field(ge=64, le=1024)] = 256
    """longer side of a drawn image"""
    seed: int = 0
    """another seed draws other species and other images"""
    flipped_labels: PlantedShare = 0.0
    """share of the images that are listed under a wrong species, to test the audit; the truth is stored beside"""
    duplicates: PlantedShare = 0.0
    """share of the images that are near-copies of another one of their species; the truth is stored beside"""

    @model_validator(mode="after")
    def _leave_test_images(self) -> "SyntheticConfig":
        if self.train_per_species >= self.images_per_species:
            raise ValueError("train_per_species has to be smaller than images_per_species")
        return self


class Smaller(Section):
    """The first epochs at a smaller image (progressive resizing)."""

    until_epoch: Count
    """last epoch at this size"""
    image_px: Annotated[int, Field(ge=16)]
    """side to which the crop of data.image_px is scaled down"""
    images_per_step: Count | None = None
    """null: that of `optim`; the learning rate is not scaled"""


class DataConfig(Section):
    source: Literal["cub200", "synthetic", "digits", "mnist", "cifar10"] = "cub200"
    """CUB-200-2011, drawn birds, 5,000 digits of MNIST that need no download, the whole of MNIST, or CIFAR-10"""
    root: Path = Path("data")
    """folder of all data sets"""
    archive: Path | None = None
    """a CUB archive, or a folder where one was unpacked; torchvision's folder of MNIST or CIFAR-10; null: download"""
    archive_md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    """digest of the archive; null: the official one"""
    synthetic: SyntheticConfig = SyntheticConfig()
    val_fraction: Fraction = 0.1
    """share of each training class held out for validation; 0: none, the last epoch is reported"""
    folds: Annotated[int, Field(ge=2)] | None = None
    """k-fold: validation is one of k parts of train, instead of val_fraction"""
    fold: Annotated[int, Field(ge=0)] = 0
    """which of the folds validates, from 0"""
    train_images: Count | None = None
    """keep so many training images, an equal share of each class; null: all that are not held out"""
    val_images: Count | None = None
    """hold out so many, an equal share of each class, instead of val_fraction"""
    test_images: Count | None = None
    """test on so many, an equal share of each class and the same for every seed; null: the whole official test set"""
    resize: Literal["squash", "short_side"] = "squash"
    """squash: to a square; short_side: ratio kept"""
    resize_px: Annotated[int, Field(ge=16)] = 512
    """side of the square, or length of the short side, in the store"""
    store: Literal["packed", "jpeg"] = "packed"
    """packed: uint8 pixels, memory-mapped; jpeg: quality 95, some 8 times smaller, slower to read"""
    image_px: Annotated[int, Field(ge=16)] = 448
    """side of the square crop that the model sees"""
    pad_px: Annotated[int, Field(ge=0)] = 0
    """black added on each side of the stored picture, before any crop"""
    crop: Literal["random", "random_resized"] = "random"
    """training crop: of image_px, or of a random area and ratio, resized to image_px"""
    crop_area_min: Annotated[float, Field(gt=0, le=1)] = 0.25
    """random_resized: smallest share of the picture's area"""
    flip: bool = True
    """mirror half of the training images"""
    color_jitter: Fraction = 0.0
    """largest relative change of brightness, contrast and saturation in training"""
    auto_augment: Literal["none", "trivial", "rand"] = "none"
    """TrivialAugment (wide), or RandAugment (2 operations of magnitude 9)"""
    random_erasing: Share = 0.0
    """share of the training images in which a rectangle becomes noise"""
    sampler: Literal["uniform", "class_balanced"] = "uniform"
    """uniform: every image once an epoch; class_balanced: every class equally often"""
    progressive: tuple[Smaller, ...] = ()
    """the first epochs at smaller images, such as [{until_epoch: 30, image_px: 224}]"""
    workers: Annotated[int, Field(ge=0)] | None = None
    """loader processes a rank; null: by the number of cores"""

    @model_validator(mode="after")
    def _fit(self) -> "DataConfig":
        if self.image_px > self.resize_px + 2 * self.pad_px:
            padded = f" + 2 pad_px {self.pad_px}" if self.pad_px else ""
            raise ValueError(f"image_px {self.image_px} is larger than resize_px {self.resize_px}{padded}")
        if self.folds is not None and self.val_images is not None:
            raise ValueError("folds and val_images both say what validates; drop one of the two")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: folds {self.folds} counts from 0")
        if any(stage.image_px > self.image_px for stage in self.progressive):
            raise ValueError(f"progressive: an image_px is larger than data.image_px {self.image_px}")
        ends = [stage.until_epoch for stage in self.progressive]
        if ends != sorted(set(ends)):
            raise ValueError(f"progressive: until_epoch has to rise, and is {ends}")
        return self

    def stage(self, epoch: int) -> Smaller | None:
        """The progressive stage of an epoch (from 0); None: images have their full size."""
        return next((stage for stage in self.progressive if epoch < stage.until_epoch), None)
