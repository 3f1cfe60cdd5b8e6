"""`train`, `distributed` and `lr_find`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.types import Count, Fraction, Positive, Section, Share, UserPath, WordOrPath


class MixConfig(Section):
    """A way to mix two images of a batch into one with both labels, or to change the region that a class activates."""

    name: Literal["mixup", "cutmix", "snapmix", "activation_crop", "activation_mask", "activation_swap"]
    """mixup: blend; cutmix, snapmix: paste a box; activation_*: change the region that activates the class"""
    alpha: Positive = 1.0
    """parameter of the Beta(alpha, alpha) distribution of the mixing ratio; SnapMix's authors use 5"""
    probability: Share = 1.0
    """share of batches treated in this way"""

    @model_validator(mode="after")
    def _check(self) -> "MixConfig":
        if self.keeps_labels and self.alpha != 1:
            raise ValueError(f"alpha is for mixup, cutmix and snapmix, and not for {self.name}; drop it")
        return self

    @property
    def keeps_labels(self) -> bool:
        """Whether an image keeps its label, and that alone."""
        return self.name.startswith("activation_")

    @property
    def follows_activation(self) -> bool:
        """Whether the model is asked where it sees a class."""
        return self.keeps_labels or self.name == "snapmix"


class TrainConfig(Section):
    epochs: Count = 128
    """passes over the training images"""
    subset: Annotated[float, Field(gt=0, le=1)] = 1.0
    """share of each training class that is used, for small experiments; validation keeps its size"""
    refit: UserPath | None = None
    """finished run whose recipe is trained on train and validation together, for the epochs that it chose; null: none"""
    start_from: Literal["random", "probe"] = "random"
    """initial head; random; or probe: the linear head of `plumage probe` on the pretrained features (LP-FT)"""
    max_steps: Count | None = None
    """optimizer steps after which the run validates, saves and ends; the schedule still spans all epochs; null: all"""
    label_smoothing: Fraction = 0.1
    """target probability spread over all classes"""
    mix: tuple[MixConfig, ...] = ()
    """how to mix or crop images, such as [{name: mixup, alpha: 0.2, probability: 0.5}]"""
    ema_decay: Fraction = 0.0
    """decay of an exponential moving average of the weights, which is validated and kept; 0: no average"""
    ema_warmup: bool = True
    """limit the decay to 1 - (1 + t)^(-2/3) at step t, so that early weights are forgotten"""
    eval_every_steps: Count | None = None
    """steps between validations within an epoch, to choose best.pt; null: only at the end of an epoch"""
    early_stop_epochs: Count | None = None
    """epochs without a better validation after which the run ends; null: never"""
    checkpoint_every_steps: Count | None = None
    """steps between checkpoints within an epoch; null: only at the end of an epoch"""
    checkpoint_every_minutes: Positive | None = None
    """minutes between checkpoints within an epoch; null: only at the end of an epoch"""
    keep_checkpoints: Count = 1
    """number of recent checkpoints kept as step-NNNNNNN.pt, beside last.pt and best.pt; 1: only those two"""
    resume: WordOrPath = "auto"
    """auto: resume from the run's last checkpoint; never: start over, moving an earlier run aside; or PATH: resume it"""
    resume_force: bool = False
    """resume despite changed settings, if the checkpoint's state still fits"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """device for every verb; auto: a GPU if there is one"""
    precision: Literal["auto", "fastest", "fp32", "bf16", "fp16"] = "auto"
    """number format; auto: bf16 if the hardware has it, fp16 on V100 and T4, else fp32; fastest: on a CPU, times both"""
    tf32: bool = False
    """compute float32 products in TF32 on Ampere and newer GPUs: faster, with a 10-bit mantissa; for precision=fp32"""
    channels_last: bool = True
    """memory layout NHWC, for faster convolutions on tensor cores and CPUs"""
    compile: bool = False
    """use torch.compile for the training step"""
    cuda_graphs: bool = False
    """record the kernels of a compiled pass once and replay them, for small batches where the GPU waits for the host"""
    deterministic: bool = False
    """use deterministic algorithms on CUDA, slower; on the CPU, runs are always bit-identical"""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        share = sum(mix.probability for mix in self.mix)
        if share > 1 + 1e-9:
            raise ValueError(f"mix: the probabilities add up to {share:g}, more than 1")
        return self


class DistributedConfig(Section):
    """Training on several ranks, one per GPU; no effect on one rank."""

    timeout_s: Annotated[float, Field(ge=5)] = 600
    """seconds that ranks wait for one another before a missing one counts as lost"""
    data_timeout_minutes: Positive = 120
    """minutes that ranks wait for the one that downloads and prepares the data"""
    sync_batchnorm: bool = False
    """compute batch norm over the images of all ranks, for few images on each; slower"""
    bucket_mb: Positive = 25
    """size in MiB of the buckets in which gradients are exchanged during the backward pass"""
    static_graph: bool = False
    """promise DDP that every step uses the same parameters, which saves it some work"""
    compress: Literal["none", "bf16", "fp16"] = "none"
    """number format of exchanged gradients; bf16, fp16: half the traffic, fewer digits"""
    shard: Literal["none", "full"] = "none"
    """sharding; full: spread parameters, gradients and optimizer state over the ranks (FSDP2), for large models"""


class LrFindConfig(Section):
    """The learning rate range test."""

    lowest: Positive = 1e-6
    """learning rate of the first step"""
    highest: Positive = 1.0
    """learning rate of the last step, unless the loss diverges first"""
    steps: Annotated[int, Field(ge=10)] = 100
    """number of steps"""

    @model_validator(mode="after")
    def _check(self) -> "LrFindConfig":
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest:g} must be below highest {self.highest:g}")
        return self
