"""The learning rate as a function of the step: no state, nothing to save, nothing to restore."""

import math

from pipeline.config import Constant, Cosine, ScheduleConfig, Step


def lr_at(schedule: ScheduleConfig, lr: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate with which step `step` (from 0) is taken.

    Warm-up is linear (Goyal et al. 2017, arXiv:1706.02677): its first step already moves, its last
    has the full rate. Cosine is that of Loshchilov & Hutter 2017 (arXiv:1608.03983), without
    restarts, over what is left after the warm-up.

    Args:
        lr: the rate at the schedule's height.
        epochs: length of the whole training.
    """
    epoch = step / steps_per_epoch
    if epoch < schedule.warmup_epochs:
        return lr * min(1.0, (step + 1) / (schedule.warmup_epochs * steps_per_epoch))
    match schedule:
        case Constant():
            factor = 1.0
        case Step(milestones=milestones, gamma=gamma):
            gammas = gamma if isinstance(gamma, tuple) else (gamma,) * len(milestones)
            factor = math.prod(g for m, g in zip(milestones, gammas, strict=True) if epoch >= m)
        case Cosine(warmup_epochs=start, final_factor=final):
            done = min(1.0, (epoch - start) / max(epochs - start, 1 / steps_per_epoch))
            factor = final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
    return lr * factor
