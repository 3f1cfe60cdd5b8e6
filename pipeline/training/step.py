"""One pass over the data: learning, or looking."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.common import seeding
from pipeline.config.training import MixConfig
from pipeline.data.loader import Batch
from pipeline.distributed.data_parallel import without_exchange
from pipeline.distributed.process_group import Ranks
from pipeline.distributed.sync_batchnorm import running_statistics
from pipeline.models.precision import Precision, autocast
from pipeline.training import optimizer
from pipeline.training.mixing import mix
from pipeline.training.phases import Rates
from pipeline.training.state import TrainState


@dataclass(frozen=True)
class Learning:
    """How a step learns, the same for all steps."""

    seed: int
    label_smoothing: float
    mix: tuple[MixConfig, ...]
    clip_norm: float | None
    images_per_pass: int
    """images that a rank computes at once; gradients of a step's passes are accumulated"""
    precision: Precision
    ranks: Ranks


def learn(
    state: TrainState,
    parallel: nn.Module,
    batch: Batch,
    images: int,
    rates: Rates,
    how: Learning,
    inspect: Callable[[], None] | None = None,
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
    torch.manual_seed(seeding.seed_of("step", how.seed, state.step, how.ranks.rank))
    draws = seeding.generator("mix", how.seed, state.step, how.ranks.rank)
    optimizer.set_rates(state.optimizer, *rates)
    batch = batch.to(how.ranks.device)
    sums = torch.zeros(3, dtype=torch.float64, device=how.ranks.device)
    passes = batch.split(passes_of(images, how.images_per_pass, how.ranks.world))
    for number, part in enumerate(passes, start=1):
        how.ranks.come()  # to the exchange of gradients
        with without_exchange(parallel, while_=number < len(passes)):
            sums[:2] += _backward(state, parallel, part, images, draws, how)
    state.scaler.unscale_(state.optimizer)
    if inspect is not None:
        inspect()
    norm = optimizer.clip(state.optimizer, how.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    how.ranks.average(running_statistics(state.model))
    state.step += 1
    if state.ema is not None:
        state.ema.update(state.model, state.step)
    sums[2] = norm if how.ranks.first else 0.0
    return sums


def passes_of(images: int, images_per_pass: int, world: int) -> int:
    """Into how many passes every rank cuts its share of a batch: the same on all, and none of them empty."""
    largest_share, smallest_share = -(-images // world), images // world
    return max(1, min(-(-largest_share // images_per_pass), smallest_share))


def _backward(
    state: TrainState,
    parallel: nn.Module,
    batch: Batch,
    images: int,
    draws: np.random.Generator,
    how: Learning,
) -> Tensor:
    """Add the gradients of one pass; return float64 [2]: sums of losses (a mean over heads) and correct images."""
    with autocast(how.ranks.device, how.precision):
        mixed = mix(batch, how.mix, draws, state.model)
        logits = parallel(mixed.image).float()
    loss = mixed.loss(logits, how.label_smoothing)
    # DistributedDataParallel divides by the number of ranks; the batch is divided by its images.
    state.scaler.scale(loss * how.ranks.world / images).backward()  # type: ignore[no-untyped-call]
    return torch.stack([loss.detach().double() / len(logits), mixed.correct(logits.detach()).double()])
