"""What a run is: typed, frozen, strict. The defaults are the baseline recipe.

A configuration is a YAML file that holds only what departs from the defaults, plus dotted
overrides (`optim.lr=0.01`). There are no includes, no interpolation and no registries. YAML is
read as version 1.2, so that `1e-3` is a number and `no` is text.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
PlantedShare = Annotated[float, Field(ge=0, le=0.5)]
Scalar = bool | int | float | str


class Section(BaseModel):
    """A part of the configuration; the text below a field is its documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class RunConfig(Section):
    name: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$")] | None = None
    """the run lives in ROOT/NAME; null: the name of the configuration file"""
    root: Path = Path("runs")
    """folder of all runs"""


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


class DataConfig(Section):
    source: Literal["cub200", "synthetic"] = "cub200"
    """CUB-200-2011, or drawn birds"""
    root: Path = Path("data")
    """folder of all data sets"""
    archive: Path | None = None
    """a CUB archive on this machine, or a folder where one was unpacked; null: download it"""
    archive_md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    """digest of the archive; null: the official one"""
    synthetic: SyntheticConfig = SyntheticConfig()
    val_fraction: Fraction = 0.1
    """share of each training class held out for validation; 0: none, the last epoch is reported"""
    folds: Annotated[int, Field(ge=2)] | None = None
    """k-fold: validation is one of k parts of train, instead of val_fraction"""
    fold: Annotated[int, Field(ge=0)] = 0
    """which of the folds validates, from 0"""
    resize: Literal["squash", "short_side"] = "squash"
    """squash: to a square; short_side: ratio kept"""
    resize_px: Annotated[int, Field(ge=16)] = 512
    """side of the square, or length of the short side, in the store"""
    store: Literal["packed", "jpeg"] = "packed"
    """packed: uint8 pixels, memory-mapped; jpeg: quality 95, some 8 times smaller, slower to read"""
    image_px: Annotated[int, Field(ge=16)] = 448
    """side of the square crop that the model sees"""
    crop: Literal["random", "random_resized"] = "random"
    """training crop: of image_px, or of a random area and ratio, resized to image_px"""
    crop_area_min: Annotated[float, Field(gt=0, le=1)] = 0.25
    """random_resized: smallest share of the picture's area"""
    flip: bool = True
    """mirror half of the training images"""
    color_jitter: Fraction = 0.0
    """largest relative change of brightness, contrast and saturation in training"""
    workers: Annotated[int, Field(ge=0)] | None = None
    """loader processes a rank; null: by the number of cores"""

    @model_validator(mode="after")
    def _fit(self) -> "DataConfig":
        if self.image_px > self.resize_px:
            raise ValueError(f"image_px {self.image_px} is larger than resize_px {self.resize_px}")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: folds {self.folds} counts from 0")
        return self


class ModelConfig(Section):
    name: str = "resnet50.tv_in1k"
    """any model of timm; .tv_in1k are torchvision's ImageNet-1k V1 weights"""
    pretrained: bool = True
    """start from ImageNet weights: timm's from its hub, or the file in weights"""
    weights: Path | None = None
    """a state dict of timm or torchvision (.pth, .pt, .safetensors)"""
    options: dict[str, Scalar] = {}
    """arguments of timm.create_model, such as {drop_path_rate: 0.1}"""
    mean: tuple[float, float, float] | None = None
    """of the RGB values, range 0..1; null: as timm has it for this model"""
    std: tuple[Positive, Positive, Positive] | None = None
    """of the RGB values, range 0..1; null: as timm has it for this model"""
    freeze_batchnorm: bool = False
    """keep the pretrained running statistics: batch norm stays in evaluation mode"""

    @model_validator(mode="after")
    def _agree(self) -> "ModelConfig":
        if self.weights is not None and not self.pretrained:
            raise ValueError("weights are given although pretrained is false; drop one of the two")
        return self


class OptimConfig(Section):
    lr: Positive = 0.025
    """learning rate at the schedule's height, for the whole batch"""
    head_lr_multiplier: Positive = 1.0
    """the classifier's learning rate over that of the rest"""
    batch_size: Count = 64
    """images a step, over all ranks; an epoch is cut into equal batches of at most this many"""
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4
    """L2 penalty on weights; norms and biases have none"""


class _Schedule(Section):
    warmup_epochs: NotNegative = 0.0
    """linear rise of the learning rate from 0"""


class Constant(_Schedule):
    name: Literal["constant"] = "constant"


class Cosine(_Schedule):
    name: Literal["cosine"] = "cosine"
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """learning rate at the end over optim.lr"""


class Step(_Schedule):
    name: Literal["step"] = "step"
    milestones: tuple[Count, ...] = (30, 60)
    """epochs at which the learning rate drops"""
    gamma: Positive | tuple[Positive, ...] = 0.1
    """the factor of every drop, or one for each milestone"""

    @model_validator(mode="after")
    def _match(self) -> "Step":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones have to rise")
        if isinstance(self.gamma, tuple) and len(self.gamma) != len(self.milestones):
            raise ValueError(f"gamma has {len(self.gamma)} factors for {len(self.milestones)} milestones")
        return self


def _schedule_name(value: Any) -> str:
    """Cosine is what a schedule without a name is."""
    name = value.get("name", "cosine") if isinstance(value, dict) else getattr(value, "name", "cosine")
    return str(name)


ScheduleConfig = Annotated[
    Annotated[Constant, Tag("constant")] | Annotated[Cosine, Tag("cosine")] | Annotated[Step, Tag("step")],
    Discriminator(_schedule_name),
]


class TrainConfig(Section):
    epochs: Count = 128
    max_steps: Count | None = None
    """stop after this many steps, validate and save; the schedule still spans all epochs"""
    label_smoothing: Fraction = 0.1
    resume: str = "auto"
    """auto: go on from the run's last checkpoint; never: put an earlier run aside; or a checkpoint's PATH"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs and CPUs that have it, fp32 elsewhere"""
    channels_last: bool = True
    """memory layout NHWC: faster convolutions on tensor cores and on CPUs"""


class EvalConfig(Section):
    split: Literal["train", "val", "test"] = "test"
    checkpoint: str = "best"
    """best, last, or a checkpoint's PATH"""
    batch_size: Count = 64
    """images a step on one rank; no result depends on it"""
    tta: Literal["none", "flip", "ten_crop"] = "none"
    """views whose probabilities are averaged: centre crop; with its mirror image; centre and corners, mirrored too"""
    peek_gap: bool = False
    """also read test with the run's other checkpoints, to see what choosing on test would gain; not a result"""

    @model_validator(mode="after")
    def _peek_at_test(self) -> "EvalConfig":
        if self.peek_gap and self.split != "test":
            raise ValueError(f"peek_gap is about the test split; drop it or split={self.split}")
        return self


class ReportConfig(Section):
    write: bool = True
    """eval ends with report.html; the verb report writes it in any case"""
    gallery: Annotated[int, Field(ge=0)] = 48
    """wrong predictions shown with their heat maps, the worst first"""
    pairs: Annotated[int, Field(ge=0)] = 12
    """most confused pairs of classes that are shown side by side"""
    explained: Count | None = 1000
    """images, drawn at random, whose heat maps are held against boxes and parts; null: all"""
    neighbours: Annotated[int, Field(ge=0)] = 2
    """nearest training images beside each mistaken one; 0: none, and no pass over the training images"""
    picture_px: Annotated[int, Field(ge=32, le=1024)] = 224
    """longer side of a picture in report.html"""


class TrackingConfig(Section):
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "plumage"
    entity: str | None = None
    """W&B user or team; null: the key's own"""
    log_every_steps: Count = 10
    """a line of log.jsonl every so many training steps"""


class Config(Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0)] = 0
    """fixes validation split, order, augmentation and initial weights"""
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = Cosine()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    report: ReportConfig = ReportConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def run_dir(self) -> Path:
        """Where the run lives."""
        return self.run.root / (self.run.name or "baseline")

    @property
    def checkpoints_dir(self) -> Path:
        """Where its checkpoints live: last.pt and best.pt."""
        return self.run_dir / "checkpoints"
