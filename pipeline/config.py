"""What a run is: typed, frozen, strict. The defaults are the baseline recipe.

A configuration is a YAML file that holds only what departs from the defaults, plus dotted
overrides (`optim.lr=0.01`). There are no includes, no interpolation and no registries. YAML is
read as version 1.2, so that `1e-3` is a number and `no` is text.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config_outcome import EvalConfig, ReportConfig, TrackingConfig
from pipeline.config_solver import (
    Cosine,
    Count,
    Fraction,
    OptimConfig,
    Options,
    PlateauRule,
    Positive,
    ReduceOnPlateau,
    ScheduleConfig,
    Section,
    Share,
    SwatsRule,
)

PlantedShare = Annotated[float, Field(ge=0, le=0.5)]


class RunConfig(Section):
    name: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$")] | None = None
    """the run lives in ROOT/NAME; null: the name of the configuration file; under W&B's agent, with the run's id"""
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


class ModelConfig(Section):
    name: str = "resnet50.tv_in1k"
    """any model of timm (.tv_in1k: torchvision's ImageNet-1k V1 weights), or plumage/resnet18..152, resnet_small"""
    pretrained: bool = True
    """start from ImageNet weights: timm's from its hub, or the file in weights"""
    weights: Path | None = None
    """a state dict of timm or torchvision (.pth, .pt, .safetensors)"""
    options: Options = Field(default={})
    """further arguments of timm.create_model; of plumage/ networks: residual, shortcut, stem, width, blocks, ..."""
    dropout: Fraction = 0.0
    """before the classifier (timm's drop_rate)"""
    stochastic_depth: Fraction = 0.0
    """residual blocks left out in training, rising with depth to this share (timm's drop_path_rate)"""
    pool: Literal["avg", "max", "avgmax", "gem"] | None = None
    """pooling of the last feature map; gem: generalised mean; null: as timm has it for this model"""
    mid_level_head: bool = False
    """a second classifier on the last but one stage (conv4_x), whose logits are averaged with the first's"""
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


class MixConfig(Section):
    """Two images of a batch become one, with both labels."""

    name: Literal["mixup", "cutmix", "snapmix"]
    """mixup: blended; cutmix: a box pasted; snapmix: a box pasted, labels weighted by class activation"""
    alpha: Positive = 1.0
    """of the Beta(alpha, alpha) distribution of the mixing ratio; SnapMix's authors take 5"""
    probability: Share = 1.0
    """share of the batches mixed in this way"""


class TrainConfig(Section):
    epochs: Count = 128
    subset: Annotated[float, Field(gt=0, le=1)] = 1.0
    """learn from this share of each training class, for a small experiment; validation stays whole"""
    max_steps: Count | None = None
    """stop after this many steps, validate and save; the schedule still spans all epochs"""
    label_smoothing: Fraction = 0.1
    mix: tuple[MixConfig, ...] = ()
    """ways of mixing images, such as [{name: mixup, alpha: 0.2, probability: 0.5}]"""
    ema_decay: Fraction = 0.0
    """an exponential moving average of the weights is validated and kept; 0: none"""
    ema_warmup: bool = True
    """the decay of step t is at most 1 - (1 + t)^(-2/3), so that early weights are forgotten"""
    eval_every_steps: Count | None = None
    """validate in mid-epoch too, and keep the best of all looks; null: at every epoch's end alone"""
    early_stop_epochs: Count | None = None
    """stop when validation has not improved for so many epochs; null: never"""
    checkpoint_every_steps: Count | None = None
    """save in mid-epoch too; null: at every epoch's end alone"""
    checkpoint_every_minutes: Positive | None = None
    """save in mid-epoch too, by the clock"""
    keep_checkpoints: Count = 1
    """the last so many are kept (step-NNNNNNN.pt), beside last.pt and best.pt"""
    resume: str = "auto"
    """auto: go on from the run's last checkpoint; never: put an earlier run aside; or a checkpoint's PATH"""
    resume_force: bool = False
    """go on although settings have changed, where the state still fits them"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs and CPUs that have it, fp32 elsewhere"""
    channels_last: bool = True
    """memory layout NHWC: faster convolutions on tensor cores and on CPUs"""
    compile: bool = False
    """torch.compile the training step"""
    deterministic: bool = False
    """deterministic algorithms on CUDA, slower; on the CPU a run is bit-identical anyway"""

    @model_validator(mode="after")
    def _shares(self) -> "TrainConfig":
        share = sum(way.probability for way in self.mix)
        if share > 1 + 1e-9:
            raise ValueError(f"mix: the probabilities add up to {share:g}; at most 1")
        return self


class DistributedConfig(Section):
    """Several ranks, one a GPU; nothing of it matters on one."""

    timeout_s: Annotated[float, Field(ge=5)] = 600
    """how long ranks wait for one another; more, and a rank is lost"""
    data_timeout_minutes: Positive = 120
    """how long ranks wait for the one that downloads and builds the data"""
    sync_batchnorm: bool = False
    """batch norm over the images of all ranks: for few images a rank; slower"""
    bucket_mb: Positive = 25
    """gradients are exchanged in parts of this size (MiB) while the backward pass goes on"""
    static_graph: bool = False
    """say that every step uses the same parameters, which saves DDP some work"""
    compress: Literal["none", "bf16", "fp16"] = "none"
    """type in which gradients are exchanged: half the traffic, fewer digits"""
    shard: Literal["none", "full"] = "none"
    """full: parameters, gradients and optimizer are spread over the ranks (FSDP2), for what does not fit on one"""


class LrFindConfig(Section):
    """The learning rate range test."""

    lowest: Positive = 1e-6
    """learning rate of the first step"""
    highest: Positive = 1.0
    """learning rate of the last step, unless the loss has diverged before"""
    steps: Annotated[int, Field(ge=10)] = 100

    @model_validator(mode="after")
    def _rise(self) -> "LrFindConfig":
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest:g} has to be below highest {self.highest:g}")
        return self


class SummaryConfig(Section):
    """The table of a network's layers."""

    depth: Count = 2
    """1: stages; 2: blocks; 3: the layers within blocks"""
    classes: Count | None = None
    """outputs of the network; null: the classes of data.source"""


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
    distributed: DistributedConfig = DistributedConfig()
    lr_find: LrFindConfig = LrFindConfig()
    summary: SummaryConfig = SummaryConfig()
    eval: EvalConfig = EvalConfig()
    report: ReportConfig = ReportConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        schedules = [self.schedule, *(phase.schedule for phase in self.optim.phases)]
        asks = {
            "schedule.name=plateau": any(isinstance(one, ReduceOnPlateau) for one in schedules),
            "a phase until a plateau": any(isinstance(p.until, PlateauRule) for p in self.optim.phases),
            "train.early_stop_epochs": self.train.early_stop_epochs is not None,
            "train.eval_every_steps": self.train.eval_every_steps is not None,
        }
        if wanting := [name for name, asked in asks.items() if asked and not self.validates]:
            raise ValueError(f"{wanting[0]} looks at validation, and data.val_fraction is 0")
        self._refuse_in_shards()
        for phase in self.optim.phases:
            if isinstance(phase.until, int) and phase.until >= self.train.epochs:
                raise ValueError(
                    f"optim.phases: {phase.name} until {phase.until} of {self.train.epochs} epochs"
                )
        if self.eval.tta == "ten_crop" and self.data.image_px > self.data.resize_px:
            raise ValueError(
                "eval.tta: ten_crop needs corners, and data.image_px is larger than data.resize_px"
            )
        return self

    def _refuse_in_shards(self) -> None:
        if self.distributed.shard == "none":
            return
        asks = {
            "train.precision=fp16": self.train.precision == "fp16",
            "train.compile": self.train.compile,
            "optim.batch_size=auto": self.optim.batch_size == "auto",
            "snapmix": any(way.name == "snapmix" for way in self.train.mix),
            "tracking.gradients_every_steps": self.tracking.gradients_every_steps is not None,
            "a phase until swats": any(isinstance(phase.until, SwatsRule) for phase in self.optim.phases),
        }
        if asked := [name for name, asks_for_it in asks.items() if asks_for_it]:
            raise ValueError(f"distributed.shard=full goes without {asked[0]}; drop one of the two")

    @property
    def validates(self) -> bool:
        """Whether part of train is held out for validation."""
        data = self.data
        return data.folds is not None or data.val_images is not None or data.val_fraction > 0

    @property
    def run_dir(self) -> Path:
        """Where the run lives."""
        return self.run.root / (self.run.name or "baseline")

    @property
    def checkpoints_dir(self) -> Path:
        """Where its checkpoints live."""
        return self.run_dir / "checkpoints"
