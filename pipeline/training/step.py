"""One optimizer step: forward and backward over micro-batches, clipping, update, EMA."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.common import seeding
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.distributed.data_parallel import gradient_sync
from pipeline.distributed.process_group import Ranks
from pipeline.distributed.sync_batchnorm import running_statistics
from pipeline.models.precision import Precision, autocast
from pipeline.training.loss import count_correct, cross_entropy_sum
from pipeline.training.mixing import mix
from pipeline.training.optimizer import clip, set_rates
from pipeline.training.phases import Rates
from pipeline.training.state import TrainState

LEAST_LOSS_SCALE = 1e-4  # of fp16, as fairseq has it: gradients that are not finite there never will be
FIRST_LOSS_SCALE = 2.0**16  # of torch.amp.GradScaler


@dataclass(frozen=True)
class StepSettings:
    """What is the same for all steps of a run."""

    seed: int
    label_smoothing: float
    mix: tuple[MixConfig, ...]
    clip_norm: float | None
    micro_batch_size: int
    """images that a rank computes at once; the gradients of a step's micro-batches are accumulated"""
    precision: Precision
    ranks: Ranks


def train_step(
    state: TrainState,
    ddp_model: nn.Module,
    batch: Batch,
    global_batch_size: int,
    rates: Rates,
    settings: StepSettings,
    on_gradients: Callable[[], None] | None = None,
) -> Tensor:
    """Take one optimizer step; return this rank's sums: float64 [4], loss, correct images, gradient norm, skipped.

    The loss is the mean cross-entropy over the whole batch, whatever its division into ranks and micro-batches.
    The norm (L2, over all ranks and parameters, before clipping) is given on the first rank, and 0 on others. With
    fp16 a step whose gradients are not finite at the scale of the loss is skipped: 1 on the first rank, its norm 0.

    Args:
        ddp_model: `state.model`, wrapped to average gradients over ranks.
        batch: this rank's share.
        global_batch_size: images of the batch over all ranks.
        on_gradients: called while the parameters have the step's gradients, before clipping.
    """
    # Dropout and stochastic depth draw from a stream named by the step: nothing to save or restore.
    torch.manual_seed(seeding.seed_of("step", settings.seed, state.step, settings.ranks.rank))
    generator = seeding.generator("mix", settings.seed, state.step, settings.ranks.rank)
    set_rates(state.optimizer, *rates)
    batch = batch.to(settings.ranks.device)
    sums = torch.zeros(4, dtype=torch.float64, device=settings.ranks.device)
    parts = accumulation_steps(global_batch_size, settings.micro_batch_size, settings.ranks.world_size)
    micro_batches = batch.split(parts)
    for number, micro_batch in enumerate(micro_batches, start=1):
        with gradient_sync(ddp_model, settings.ranks, last=number == len(micro_batches)):
            sums[:2] += _backward(state, ddp_model, micro_batch, global_batch_size, generator, settings)
    state.scaler.unscale_(state.optimizer)
    if on_gradients is not None:
        on_gradients()
    norm = clip(state.optimizer, settings.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if settings.ranks.world_size > 1:
        settings.ranks.all_reduce_mean(running_statistics(state.batchnorms))
    state.step += 1
    if state.ema is not None:
        state.ema.update(state.model, state.step)
    if settings.ranks.is_main:
        sums[2] = norm
        if state.scaler.is_enabled():
            skipped = ~norm.isfinite()
            sums[2:] = torch.stack([norm.masked_fill(skipped, 0), skipped.to(norm.dtype)])
    return sums


def skips_all(state: TrainState, *, is_last: bool) -> bool:
    """Whether fp16 learns nothing: its loss scale has fallen out of range, or no step of a whole run was taken.

    Args:
        is_last: whether the run's last step is behind.
    """
    if not state.scaler.is_enabled():
        return False
    scale, of_none_taken = state.scaler.get_scale(), FIRST_LOSS_SCALE * 0.5**state.step
    return scale < LEAST_LOSS_SCALE or (is_last and scale <= of_none_taken)


def accumulation_steps(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """The number of micro-batches that every rank cuts its share of a batch into; none of them is empty."""
    largest, smallest = largest_share(global_batch_size, world_size), global_batch_size // world_size
    return max(1, min(math.ceil(largest / micro_batch_size), smallest))


def largest_share(images: int, world_size: int) -> int:
    """The most images that a rank takes of a batch, or of what all ranks compute at once."""
    return math.ceil(images / world_size)


def _backward(
    state: TrainState,
    ddp_model: nn.Module,
    batch: Batch,
    global_batch_size: int,
    generator: np.random.Generator,
    settings: StepSettings,
) -> Tensor:
    """Add the gradients of one micro-batch; return float64 [2]: summed loss (mean over heads), correct images."""
    # Two blocks: autocast keeps the weights that it has cast until its block ends, and the torch of 2.6 would
    # reuse those that SnapMix has cast without a gradient.
    with autocast(settings.ranks.device, settings.precision):
        mixed = mix(batch, settings.mix, generator, state.model)
    # One number format for all batches of a run, mixed or not: torch.compile makes a graph for each.
    image = mixed.image.float() if any(way.name != "cutmix" for way in settings.mix) else mixed.image
    with autocast(settings.ranks.device, settings.precision):
        logits = ddp_model(image).float()
    loss = cross_entropy_sum(logits, mixed, settings.label_smoothing)
    # DistributedDataParallel divides by the number of ranks; the batch is divided by its images.
    state.scaler.scale(loss * settings.ranks.world_size / global_batch_size).backward()  # type: ignore[no-untyped-call]
    return torch.stack([loss.detach().double() / len(logits), count_correct(logits.detach(), mixed).double()])
