"""One pass over the data: learning, or looking."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.common import seeding
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.distributed.data_parallel import without_gradient_sync
from pipeline.distributed.process_group import Ranks
from pipeline.distributed.sync_batchnorm import running_statistics
from pipeline.models.precision import Precision, autocast
from pipeline.training.mixing import mix
from pipeline.training.optimizer import clip, set_rates
from pipeline.training.phases import Rates
from pipeline.training.state import TrainState


@dataclass(frozen=True)
class StepSettings:
    """How a step learns, the same for all steps."""

    seed: int
    label_smoothing: float
    mix: tuple[MixConfig, ...]
    clip_norm: float | None
    micro_batch_size: int
    """images that a rank computes at once; gradients of a step's passes are accumulated"""
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
    """Take one optimizer step; return this rank's sums: float64 [3], loss, correct, and the gradient's norm.

    The loss is the mean cross-entropy over the whole batch, whatever the shares of ranks and passes in it.
    The norm (over all ranks and parameters, before clipping) is given on the first rank, and 0 on others.

    Args:
        parallel: `state.model`, wrapped to average gradients over ranks.
        batch: this rank's share.
        images: size of the batch over all ranks.
        inspect: called while the parameters have the step's gradients, before clipping.
    """
    # Dropout and stochastic depth draw from a stream named by the step: nothing to save or restore.
    torch.manual_seed(seeding.seed_of("step", settings.seed, state.step, settings.ranks.rank))
    draws = seeding.generator("mix", settings.seed, state.step, settings.ranks.rank)
    set_rates(state.optimizer, *rates)
    batch = batch.to(settings.ranks.device)
    sums = torch.zeros(3, dtype=torch.float64, device=settings.ranks.device)
    micro_batches = batch.split(
        accumulation_steps(global_batch_size, settings.micro_batch_size, settings.ranks.world_size)
    )
    for number, part in enumerate(micro_batches, start=1):
        settings.ranks.count_collective()  # to the exchange of gradients
        with without_gradient_sync(ddp_model, while_=number < len(micro_batches)):
            sums[:2] += _backward(state, ddp_model, part, global_batch_size, draws, settings)
    state.scaler.unscale_(state.optimizer)
    if on_gradients is not None:
        on_gradients()
    norm = clip(state.optimizer, settings.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    settings.ranks.all_reduce_mean(running_statistics(state.model))
    state.step += 1
    if state.ema is not None:
        state.ema.update(state.model, state.step)
    sums[2] = norm if settings.ranks.is_main else 0.0
    return sums


def accumulation_steps(images: int, images_per_pass: int, world: int) -> int:
    """Into how many passes every rank cuts its share of a batch: the same on all, and none of them empty."""
    largest_share, smallest_share = -(-images // world), images // world
    return max(1, min(-(-largest_share // images_per_pass), smallest_share))


def _backward(
    state: TrainState,
    ddp_model: nn.Module,
    batch: Batch,
    global_batch_size: int,
    draws: np.random.Generator,
    settings: StepSettings,
) -> Tensor:
    """Add the gradients of one pass; return float64 [2]: sums of losses (a mean over heads) and correct images."""
    with autocast(settings.ranks.device, settings.precision):
        mixed = mix(batch, settings.mix, draws, state.model)
        logits = ddp_model(mixed.image).float()
    loss = mixed.loss(logits, settings.label_smoothing)
    # DistributedDataParallel divides by the number of ranks; the batch is divided by its images.
    state.scaler.scale(loss * settings.ranks.world_size / global_batch_size).backward()  # type: ignore[no-untyped-call]
    return torch.stack([loss.detach().double() / len(logits), mixed.correct(logits.detach()).double()])
