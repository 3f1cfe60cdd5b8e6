"""Checks that train: does a batch fit, is a step repeatable, and what holds a run up, loader or step."""

import itertools
import math
import platform
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pipeline.common import hardware
from pipeline.common.errors import ConfigError
from pipeline.common.files import size_in_words
from pipeline.data import sampling
from pipeline.data.loader import Batch
from pipeline.distributed.data_parallel import replicate
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding, of_error
from pipeline.training import auto_batch_size, description, phases, step
from pipeline.training.freezing import FreezeSchedule
from pipeline.training.state import TrainState

BUDGET_S = 10.0  # for each of: loader, step, step on all ranks
STEPS_AT_MOST, STEPS_IN_SHARDS = 20, 3
LOOK_OVER_STEP = 1 / 3  # what an image costs in validation over what it costs in training: forward alone
SLOW_EXCHANGE = 0.7  # speed of all ranks together over that of each alone


def room(subject: CheckContext) -> Finding:
    """How many images fit into memory at once, by growing trial batches; the batch of a step."""
    config, ranks, asked = subject.config, subject.ranks, subject.config.optim.batch_size
    wanted = (
        -(-config.optim.images_per_step // ranks.world_size)
        if asked == "auto"
        else max(1, asked // ranks.world_size)
    )
    if subject.in_shards:
        subject.batch_size = config.optim.images_per_step if asked == "auto" else asked
        return Finding("not applicable", "in shards: no rank can try the whole model alone")
    free = hardware.free_bytes(ranks.device)
    try:
        own = auto_batch_size.largest_that_fits(
            wanted, subject.own.model, config.data.image_px, subject.precision, ranks
        )
    except torch.OutOfMemoryError:
        own = 0
    fitting = min(ranks.all_gather(own))
    try:
        subject.batch_size = (
            auto_batch_size.in_equal_micro_batches(config, fitting, ranks) if asked == "auto" else asked
        )
    except ConfigError as error:
        return of_error(error)
    figures = (
        f"{description.batch(config, subject.batch_size, ranks.world_size)}; of {config.data.image_px} px "
        f"{'at least ' * (own >= wanted)}{own} fit at once into {size_in_words(free)} of free memory"
    )
    numbers = {"batch_size": subject.batch_size, "images_that_fit": own, "free_bytes": free}
    if asked != "auto" and own < wanted:
        what_next = (
            f"set optim.batch_size={fitting * ranks.world_size} optim.effective_batch_size="
            f"{config.optim.images_per_step}: the same training in more passes"
            if fitting
            else "take a smaller model or data.image_px"
        )
        return Finding("no-go", figures, what_next, numbers)
    return Finding("ok", figures, numbers=numbers)


def repeat(subject: CheckContext) -> Finding:
    """Take the first real step twice, on copies: its loss, its memory, and whether both are the same."""
    ranks = subject.ranks
    if subject.in_shards:
        return Finding("not applicable", "in shards: no rank can take a step alone")
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)  # trial batches may have been larger
    try:
        taken = [_first_step(subject) for _ in range(2)]
    except torch.OutOfMemoryError:
        what_next = "set optim.batch_size lower and optim.effective_batch_size to what it is now"
        return Finding("no-go", "the first step does not fit into memory", what_next)
    (loss, one, _), (again, other, subject.step_s) = taken
    same = loss == again and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    peak = hardware.peak_bytes(ranks.device)
    guess = math.log(len(subject.job.classes))
    figures = (
        f"loss {loss:.3f} (a guess among {len(subject.job.classes)} classes: {guess:.3f}); taken twice, it is "
        f"{'' if same else 'not '}the same bit for bit; at most {size_in_words(peak)} of memory"
    )
    numbers = {
        "loss": loss if math.isfinite(loss) else str(loss),
        "loss_of_a_guess": guess,
        "repeats": same,
        "peak_bytes": peak,
    }
    if not math.isfinite(loss):
        return Finding(
            "no-go", figures, "take another train.precision, or see model.mean and model.std", numbers
        )
    if not same and (ranks.device.type == "cpu" or subject.config.train.deterministic):
        return Finding(
            "no-go", figures, "report this: an interrupted run would not end as a whole one", numbers
        )
    return Finding("ok", figures, numbers=numbers)


def _first_step(subject: CheckContext) -> tuple[float, list[torch.Tensor], float]:
    """Mean loss of this rank's share of the first batch, the weights after it, and its seconds."""
    state = subject.trial(alone=True)
    batch = next(_batches(subject))
    subject.step_images = len(batch.label)
    _prepare(subject, state)
    started = time.perf_counter()
    sums = _learn(subject, state, state.model, batch, subject.step_images, alone=True)
    loss = float(sums[0]) / subject.step_images
    return loss, list(state.model.parameters()), time.perf_counter() - started


def _prepare(subject: CheckContext, state: TrainState) -> None:
    """Training mode, as in the epoch with the largest images."""
    FreezeSchedule(subject.config, state.model).apply(subject.last_epoch)


def _batches(subject: CheckContext) -> Iterator[Batch]:
    """This rank's share of the batches of the epoch with the largest images, from the run's own loader."""
    job, epoch = subject.job, subject.last_epoch
    return job.train_loader.batches(epoch, sampling.shard_batches(job.epoch_batches(epoch), subject.ranks))


def _learn(
    subject: CheckContext, state: TrainState, parallel: nn.Module, batch: Batch, images: int, *, alone: bool
) -> torch.Tensor:
    of_step = phases.rates(subject.config, state.phase, state.step, subject.job.clock)
    return step.train_step(state, parallel, batch, images, of_step, subject.how(alone=alone))


# Speed


def speed(subject: CheckContext) -> Finding:
    """Images a second of the loader alone and of the step alone; what holds the run up, and how long it takes."""
    ranks = subject.ranks
    ranks.barrier()
    loading = _loader_rate(subject)
    if subject.in_shards:
        steps, own = STEPS_IN_SHARDS, math.nan
    else:
        slowest_s = max(ranks.all_gather(subject.step_s))
        steps = max(1, min(STEPS_AT_MOST, int(BUDGET_S / slowest_s)))
        measured = subject.step_images / subject.step_s  # enough when a step is long
        own = measured if slowest_s > BUDGET_S else _step_rate(subject, steps, alone=True)
    of_ranks: list[tuple[float, float, str]] = ranks.all_gather((loading, own, platform.node()))
    alone = sum(rate for _, rate, _ in of_ranks)
    together = (
        min(ranks.all_gather(_step_rate(subject, steps, alone=False))) if ranks.world_size > 1 else alone
    )
    all_loading = min(rate for rate, *_ in of_ranks) * ranks.world_size
    rate = throughput(all_loading, together, subject.workers)
    hours = _hours(subject, rate)
    compared = ranks.world_size > 1 and not subject.in_shards
    figures = [
        f"loader alone {_rate(all_loading)} images/s, step alone {_rate(together)}: "
        f"the {'loader' if all_loading < together else 'step'} is the bottleneck",
        *([_of_ranks([of_rank[1:] for of_rank in of_ranks], together / alone)] if compared else []),
        f"{_rate(rate)} images/s in all, about {_duration(hours)} to the end of the run",
    ]
    numbers: dict[str, Any] = {
        "loader_images_per_s": all_loading,
        "step_images_per_s": together,
        "images_per_s": rate,
        "hours": hours,
    }
    if compared:
        numbers |= {"alone_images_per_s": [rate for _, rate, _ in of_ranks], "efficiency": together / alone}
    what_next = ""
    if all_loading < together:
        what_next = (
            "raise data.workers, or take data.store=packed on a faster disk: the step waits for pictures"
        )
    elif compared and together < SLOW_EXCHANGE * alone:
        what_next = "see all-reduce: most of the rest is the exchange of gradients; larger batches need fewer"
    return Finding("warning" if what_next else "ok", "; ".join(figures), what_next, numbers)


def throughput(loading: float, stepping: float, workers: int) -> float:
    """Images a second of loader and step: side by side, or one after the other in one process."""
    return min(loading, stepping) if workers else 1 / (1 / loading + 1 / stepping)


def _of_ranks(rates: list[tuple[float, str]], efficiency: float) -> str:
    def named(choose: Any) -> str:
        rank = choose(range(len(rates)), key=lambda number: rates[number][0])
        return f"rank {rank} on {rates[rank][1]} ({_rate(rates[rank][0])})"

    return (
        f"{len(rates)} ranks together are {efficiency:.0%} as fast as each alone, the slowest {named(min)}, "
        f"the fastest {named(max)}"
    )


def _loader_rate(subject: CheckContext) -> float:
    """Images a second that this rank's loader serves, once its processes have begun."""
    batches = itertools.chain.from_iterable(_batches(subject) for _ in range(2))  # an epoch may be one batch
    next(batches)
    images, started = 0, time.perf_counter()
    for batch in itertools.islice(batches, STEPS_AT_MOST):
        images += len(batch.label)
        if time.perf_counter() - started > BUDGET_S:
            break
    return images / (time.perf_counter() - started)


def _step_rate(subject: CheckContext, steps: int, *, alone: bool) -> float:
    """Images a second, over the ranks that take part, of steps on one batch that is already in memory."""
    ranks = subject.only_me() if alone else subject.ranks
    state = subject.trial(alone=alone)
    batch = next(_batches(subject))
    _prepare(subject, state)
    images = len(batch.label) if alone else int(sum(ranks.all_gather(len(batch.label))))
    model: Any = torch.compile(state.model) if subject.config.train.compile else state.model
    parallel = replicate(model, subject.config.distributed, ranks)

    def take(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            sums = _learn(subject, state, parallel, batch, images, alone=alone)
        float(sums[0])  # waits for a GPU
        return time.perf_counter() - started

    take(1)
    subject.ranks.barrier()
    return steps * images / take(steps)


def _hours(subject: CheckContext, rate: float) -> float:
    """Of the steps that are left, each epoch with its validation."""
    left = max(0, subject.steps - subject.step) * subject.config.optim.images_per_step
    epochs = left / len(subject.job.train_rows)
    return (left + epochs * LOOK_OVER_STEP * len(subject.job.val_rows)) / rate / 3600


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.3g}"


def _duration(hours: float) -> str:
    return f"{60 * hours:.1f} minutes" if hours < 1 else f"{hours:.1f} hours"
