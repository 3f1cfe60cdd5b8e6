"""`train`, `distributed` and `lr_find`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.types import Count, Fraction, Positive, Section, Share


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
