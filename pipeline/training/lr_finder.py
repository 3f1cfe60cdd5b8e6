"""The learning rate range test: which rate to begin with, from one short training.

Smith 2017, "Cyclical learning rates for training neural networks", arXiv:1506.01186: the rate grows
from step to step, and the loss is watched. Two rates are found, as fastai's `steep` and `minimum` find them:
the one at which the loss falls most steeply over the logarithm of the rate, and a tenth of the one at which it
is lowest. The smaller is proposed, the other is a second opinion. As in fastai the first tenth of the steps is
left out, in which the mean is of few losses and follows their noise; what comes after the lowest loss, too.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.common import console, tables
from pipeline.common.errors import ConfigError
from pipeline.config.schema import Config
from pipeline.data import sampling
from pipeline.data.loader import Batch
from pipeline.distributed import process_group
from pipeline.distributed.data_parallel import replicate
from pipeline.plots import training_curves
from pipeline.runs.directory import RunDirectory
from pipeline.training.freezing import FreezeSchedule
from pipeline.training.phases import Rates
from pipeline.training.preflight import training_memory_errors
from pipeline.training.schedule import images_per_step
from pipeline.training.setup import TrainingSetup
from pipeline.training.start import resume_or_start
from pipeline.training.step import train_step

SMOOTHING = 0.9  # of the losses: an exponential mean, its start corrected for
DIVERGED = 3.0  # times the lowest smoothed loss
LEAST_FALL = 0.01  # of the first loss: with less, the range holds no rate that learns


def find_lr(config: Config) -> dict[str, Any]:
    """Learn with a growing rate from a fresh model; return the rate proposed. No checkpoint is written.

    Raises:
        UserError: the data are not prepared, model, weights or optimizer do not fit, or no rate of the range
            lowers the loss.
    """
    joined = process_group.join(config.train, config.distributed.timeout_s)
    with joined as ranks, training_memory_errors(config):
        config = config.model_copy(update={"train": config.train.model_copy(update={"resume": "never"})})
        setup = TrainingSetup(config, ranks)
        start = resume_or_start(setup)
        state, settings = start.state, start.step_settings(config, ranks)
        FreezeSchedule(config, state.model).apply(0)  # DDP buckets only what has gradients
        ddp_model = replicate(state.model, config.distributed, ranks)
        momentum = config.optim.resolved_phases[0].momentum
        test = config.lr_find
        lrs = np.geomspace(test.lowest, test.highest, test.steps)
        losses: list[float] = []
        with console.bar("lr-find", test.steps, "steps") as bar:
            for lr, (images, batch) in zip(lrs, _batches(setup, test.steps), strict=False):
                rates = Rates(float(lr), momentum)
                sums = train_step(state, ddp_model, batch, images, rates, settings)
                losses.append(float(ranks.all_reduce_sum(sums)[0]) / images)
                bar.advance(1, loss=losses[-1], lr=float(lr))
                smoothed = smooth(np.array(losses))
                if not math.isfinite(losses[-1]) or smoothed[-1] > DIVERGED * smoothed.min():
                    break
        return _write(config, lrs[: len(losses)], losses) if ranks.is_main else {}


def _batches(setup: TrainingSetup, steps: int) -> Iterator[tuple[int, Batch]]:
    """Batches of the training images with their size over all ranks, epoch after epoch."""
    epoch = 0
    while steps > 0:
        batches = setup.epoch_batches(epoch)[:steps]
        served = setup.train_loader.batches(epoch, sampling.shard_batches(batches, setup.ranks))
        yield from zip(map(len, batches), served, strict=True)
        steps, epoch = steps - len(batches), epoch + 1


def smooth(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Exponential running mean of losses, its start corrected for, as Adam's moments are; float64 [n]."""
    means = pd.Series(losses).ewm(alpha=1 - SMOOTHING, adjust=True).mean()
    return np.asarray(means.to_numpy(), np.float64)


def propose(lrs: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The rate where the smoothed loss falls most steeply over log(lr), and a tenth of that where it is lowest.

    Args:
        lrs, losses: float64 [n], two of which are finite at least; the first tenth is not looked at.
    """
    finite = np.isfinite(losses)
    lrs, losses = lrs[finite], losses[finite]
    first = len(lrs) // 10
    lowest = first + int(losses[first:].argmin())
    searched = slice(first, max(first + 2, lowest + 1))
    steepest = first + int(np.gradient(losses[searched], np.log(lrs[searched])).argmin())
    return float(lrs[steepest]), float(lrs[lowest] / 10)


def _write(config: Config, lrs: npt.NDArray[np.float64], losses: list[float]) -> dict[str, Any]:
    if np.isfinite(losses).sum() < 2:
        raise ConfigError(
            f"lr-find: the loss is not finite at step {len(losses)}, with learning rate {lrs[-1]:.2g}; lower "
            "lr_find.lowest, or take another train.precision"
        )
    run, smoothed = RunDirectory(config.run_dir), smooth(np.array(losses))
    steepest, tenth = propose(lrs, smoothed)
    proposed, at_most = sorted((steepest, tenth))
    tables.write_csv(pd.DataFrame({"lr": lrs, "loss": losses, "smoothed": smoothed}), run.lr_find_table)
    training_curves.draw_range_test(run.lr_find_figure, lrs.tolist(), smoothed.tolist(), steepest, tenth)
    if smoothed[0] - np.nanmin(smoothed) < LEAST_FALL * smoothed[0]:
        raise ConfigError(
            f"lr-find: no learning rate of {lrs[0]:.2g} .. {lrs[-1]:.2g} lowers the loss ({run.lr_find_figure}); "
            "widen lr_find.lowest and lr_find.highest, or take more lr_find.steps"
        )
    console.say(
        f"lr-find  proposes optim.lr={proposed:.2g}, or up to {at_most:.2g}, for batches of "
        f"{images_per_step(config, 0)}: {run.lr_find_table.parent}"
    )
    return {"lr": proposed, "lr_at_most": at_most, "folder": str(run.lr_find_table.parent)}
