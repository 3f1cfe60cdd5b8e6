"""Meters of a training epoch: summed loss and accuracy, images per second, the time waited for data.

The sums stay on the device; the program waits for it only when they are read.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.distributed.process_group import Ranks
from pipeline.training.state import Totals

Item = TypeVar("Item")


class NotFinite(Exception):
    """The loss of a step is NaN or infinite."""

    def __init__(self, step: int, loss: float, draws: npt.NDArray[np.int64]) -> None:
        """step: its number, from 1; draws: int64, those of its batch over all ranks."""
        super().__init__(f"the loss of step {step} is {loss}")
        self.step, self.loss, self.draws = step, loss, draws


class EpochMeter:
    """Counts one epoch, or what is left of it."""

    def __init__(self, carried: Totals, ranks: Ranks) -> None:
        """carried: sums of the part of the epoch that an earlier process did."""
        self.ranks = ranks
        self._seen, self._steps, self._images = carried.seen, carried.steps, 0
        # The first rank carries them on; all ranks' sums are added when they are asked for.
        start = [carried.loss, carried.correct, carried.gradient_norm, carried.skipped_steps]
        start = start if ranks.is_main else [0.0] * 4
        self._sums = torch.tensor(start, dtype=torch.float64, device=ranks.device)
        self._unchecked: list[tuple[int, npt.NDArray[np.int64], Tensor]] = []
        self._started = time.perf_counter()
        self._waited_s = 0.0

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches; the time until each is there counts as waiting for data."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self._waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block does not count as training."""
        begun = time.perf_counter()
        yield
        self._started += time.perf_counter() - begun

    def add(self, step: int, draws: npt.NDArray[np.int64], sums: Tensor, *, timed: bool = True) -> None:
        """Count a step.

        Args:
            step: its number, from 1.
            draws: int64, of the batch over all ranks.
            sums: float64 [4], as `train_step` returns them.
            timed: whether its images count for the speed; not, where the step was `paused`.
        """
        self._sums += sums
        self._seen += len(draws)
        self._images += len(draws) if timed else 0
        self._steps += 1
        self._unchecked.append((step, draws, sums))

    def last(self) -> dict[str, float]:
        """Loss and gradient norm (nan where it was skipped) of the last step, over all ranks.

        Raises:
            NotFinite: the loss of a step since the last call is not a number, or infinite.
        """
        sums = self.ranks.all_reduce_sum(torch.stack([sums for *_, sums in self._unchecked])).tolist()
        for (step, draws, _), (loss, *_) in zip(self._unchecked, sums, strict=True):
            if not np.isfinite(loss):
                raise NotFinite(step, loss, draws)
        images, (loss, _, norm, skipped) = len(self._unchecked[-1][1]), sums[-1]
        self._unchecked = []
        return {"loss": loss / images, "grad_norm": math.nan if skipped else norm}

    def totals(self) -> Totals:
        """The sums of the epoch so far, over all ranks.

        Raises:
            NotFinite: as in `last`.
        """
        if self._unchecked:
            self.last()
        loss, correct, norm, skipped = self.ranks.all_reduce_sum(self._sums.clone()).tolist()
        return Totals(loss, correct, norm, self._seen, self._steps, int(skipped))

    def speed(self) -> dict[str, float | None]:
        """images_per_s, and data_wait: the share of the time in which a batch was waited for.

        None, where no step was timed.
        """
        if not self._images:
            return {"images_per_s": None, "data_wait": None}
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return {"images_per_s": self._images / seconds, "data_wait": self._waited_s / seconds}
