"""Checks that train: a batch fits into memory, a step is repeatable, the loader keeps up with the step."""

import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.common import hardware
from pipeline.common.errors import ConfigError
from pipeline.common.files import size_in_words
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding, of_error
from pipeline.doctor.products import STEP_0, BuiltModel, StartStep, StepTiming, TriedModel
from pipeline.doctor.trial_steps import TrialSteps
from pipeline.training import auto_batch_size, description
from pipeline.training.setup import TrainingSetup

BUDGET_S = 10.0  # for each of: loader, step, step on all ranks
MOST_STEPS, SHARDED_STEPS = 20, 3
VALIDATION_COST = 1 / 3  # of an image, over what it costs in training: the forward pass alone
LOW_EFFICIENCY = 0.7


def memory(
    context: CheckContext, setup: TrainingSetup, model: TriedModel
) -> tuple[Finding, TrialSteps | None]:
    """Measure how many images fit into memory at once, by growing trial batches; choose the batch size."""
    config, ranks = context.config, context.ranks
    batch_size = config.optim.batch_size
    step_images = config.optim.images_per_step
    if context.is_sharded:
        finding = Finding("not applicable", "in shards: no rank can try the whole model alone")
        images = step_images if batch_size == "auto" else batch_size
        return finding, TrialSteps(context, setup, model, images)
    most = -(-(step_images if batch_size == "auto" else batch_size) // ranks.world_size)
    free = hardware.free_bytes(ranks.device)
    fitting = _largest_that_fits(context, model, most)
    fitting_on_all = min(ranks.all_gather(fitting))
    if batch_size == "auto":
        try:
            batch_size = auto_batch_size.in_equal_micro_batches(config, fitting_on_all, ranks)
            single_model = model.single_rank_state.model
            auto_batch_size.check_evaluation(fitting_on_all, config, single_model, context.precision, ranks)
        except ConfigError as error:
            return of_error(error), None
        fits = True
    else:
        fits = fitting >= most
    figures = (
        f"{description.batch(config, batch_size, ranks.world_size)}; of {config.data.image_px} px "
        f"{'at least ' * (fitting >= most)}{fitting} fit at once into {size_in_words(free)} of free memory"
    )
    numbers = {"batch_size": batch_size, "images_that_fit": fitting, "free_bytes": free}
    if fits:
        return Finding("ok", figures, numbers=numbers), TrialSteps(context, setup, model, batch_size)
    what_next = "use a smaller model or data.image_px"
    if fitting_on_all:
        what_next = (
            f"set optim.batch_size={fitting_on_all * ranks.world_size} optim.effective_batch_size={step_images}: "
            "the same training in more micro-batches"
        )
    return Finding("no-go", figures, what_next, numbers), None


def _largest_that_fits(context: CheckContext, model: BuiltModel, most: int) -> int:
    """Images that this rank computes at once, at most `most`; 0: not even the smallest trial batch fits."""
    single_model = model.single_rank_state.model
    return auto_batch_size.largest_that_fits(
        most, context.config, single_model, context.precision, context.ranks
    )


def first_step(
    context: CheckContext, setup: TrainingSetup, trial: TrialSteps
) -> tuple[Finding, StepTiming | None]:
    """Take the first step twice, on copies: its loss, its memory, and whether both give the same weights."""
    device = context.ranks.device
    if context.is_sharded:
        finding = Finding("not applicable", "in shards: no rank can take a step alone")
        return finding, StepTiming(math.nan, 0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # trial batches may have been larger
    first, second = trial.first_step(), trial.first_step()
    loss, peak, classes = first.loss, hardware.peak_bytes(device), len(setup.classes)
    repeats = loss == second.loss and all(map(torch.equal, first.weights, second.weights))
    guess = math.log(classes)
    figures = (
        f"loss {loss:.3f} (a guess among {classes} classes: {guess:.3f}); taken twice, it is "
        f"{'' if repeats else 'not '}the same bit for bit; at most {size_in_words(peak)} of memory"
    )
    numbers = {
        "loss": loss if math.isfinite(loss) else str(loss),
        "loss_of_a_guess": guess,
        "repeats": repeats,
        "peak_bytes": peak,
    }
    if not math.isfinite(loss):
        what_next = "use another train.precision, or check model.mean and model.std"
        return Finding("no-go", figures, what_next, numbers), None
    if not repeats and (device.type == "cpu" or context.config.train.deterministic):
        what_next = "report this: an interrupted run would not end like an uninterrupted one"
        return Finding("no-go", figures, what_next, numbers), None
    return Finding("ok", figures, numbers=numbers), StepTiming(second.seconds, second.images)


# Speed


@dataclass(frozen=True)
class Speeds:
    """Images a second of all ranks together."""

    loader: float
    """the loaders alone, as fast as the slowest of them"""
    step: float
    """training steps alone, on a batch in memory"""
    ranks: list[tuple[float, str]]
    """training steps of each rank without exchange, nan in shards; with its host"""

    @property
    def efficiency(self) -> float:
        """Speed of all ranks together over the sum of their speeds without exchange; nan in shards."""
        return self.step / sum(speed for speed, _ in self.ranks)

    @property
    def waits_for_loader(self) -> bool:
        """Whether the loader is the bottleneck."""
        return self.loader < self.step


def speed(
    context: CheckContext,
    setup: TrainingSetup,
    trial: TrialSteps,
    timing: StepTiming,
    start: StartStep = STEP_0,
) -> Finding:
    """Measure loader alone and step alone: the bottleneck, and the hours that the run takes."""
    speeds = _measure(context, trial, timing)
    images_per_s = throughput(speeds.loader, speeds.step, context.workers)
    hours = _hours(setup, start, images_per_s)
    several = context.ranks.world_size > 1 and not context.is_sharded
    figures = [
        f"loader alone {_rate(speeds.loader)} images/s, step alone {_rate(speeds.step)}: "
        f"the {'loader' if speeds.waits_for_loader else 'step'} is the bottleneck",
        *([_compare_ranks(speeds)] if several else []),
        f"{_rate(images_per_s)} images/s in all, about {_duration(hours)} to the end of the run",
    ]
    numbers: dict[str, Any] = {
        "loader_images_per_s": speeds.loader,
        "step_images_per_s": speeds.step,
        "images_per_s": images_per_s,
        "hours": hours,
    }
    if several:
        numbers["alone_images_per_s"] = [speed for speed, _ in speeds.ranks]
        numbers["efficiency"] = speeds.efficiency
    what_next = ""
    if speeds.waits_for_loader:
        what_next = (
            "raise data.workers, or use data.store=packed on a faster disk: the step waits for pictures"
        )
    elif several and speeds.efficiency < LOW_EFFICIENCY:
        what_next = "see all-reduce: most of the rest is the exchange of gradients; larger batches need fewer"
    return Finding("warning" if what_next else "ok", "; ".join(figures), what_next, numbers)


def _measure(context: CheckContext, trial: TrialSteps, timing: StepTiming) -> Speeds:
    ranks = context.ranks
    ranks.barrier()
    loader = trial.loader_speed(MOST_STEPS, BUDGET_S)
    steps, alone = SHARDED_STEPS, math.nan
    if not context.is_sharded:
        slowest_s = max(ranks.all_gather(timing.seconds))
        steps = max(1, min(MOST_STEPS, int(BUDGET_S / slowest_s)))
        is_long = slowest_s > BUDGET_S  # then the one step is measurement enough
        alone = timing.images / timing.seconds if is_long else trial.step_speed(steps, alone=True)
    of_ranks: list[tuple[float, float, str]] = ranks.all_gather((loader, alone, platform.node()))
    slowest_loader = min(loader for loader, *_ in of_ranks)
    each_alone = [(speed, host) for _, speed, host in of_ranks]
    step = each_alone[0][0]
    if ranks.world_size > 1:
        step = min(ranks.all_gather(trial.step_speed(steps, alone=False)))
    return Speeds(slowest_loader * ranks.world_size, step, each_alone)


def throughput(loader: float, step: float, workers: int) -> float:
    """Images a second of loader and step: at the same time, or one after the other without loader processes."""
    return min(loader, step) if workers else 1 / (1 / loader + 1 / step)


def _compare_ranks(speeds: Speeds) -> str:
    def name(choose: Callable[..., int]) -> str:
        rank = choose(range(len(speeds.ranks)), key=lambda rank: speeds.ranks[rank][0])
        images_per_s, host = speeds.ranks[rank]
        return f"rank {rank} on {host} ({_rate(images_per_s)})"

    return (
        f"{len(speeds.ranks)} ranks together are {speeds.efficiency:.0%} as fast as each alone, "
        f"the slowest {name(min)}, the fastest {name(max)}"
    )


def _hours(setup: TrainingSetup, start: StartStep, images_per_s: float) -> float:
    """Hours of the steps that are left, with a validation after each epoch."""
    images = max(0, setup.last_step - start.step) * setup.config.optim.images_per_step
    epochs = images / len(setup.train_rows)
    return (images + epochs * VALIDATION_COST * len(setup.val_rows)) / images_per_s / 3600


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.3g}"


def _duration(hours: float) -> str:
    return f"{60 * hours:.1f} minutes" if hours < 1 else f"{hours:.1f} hours"
