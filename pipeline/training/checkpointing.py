"""Writing `best.pt` and `last.pt` of a run: when they are due, and before a run that was asked to stop ends."""

import concurrent.futures
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.common import signals
from pipeline.common.errors import Diverged, Stopped, name_some
from pipeline.models.pretrained import not_finite
from pipeline.runs import checkpoints, history
from pipeline.runs.directory import RunDirectory
from pipeline.training.epoch_meter import EpochMeter
from pipeline.training.setup import TrainingSetup
from pipeline.training.start import RunStart
from pipeline.training.state import checkpoint_content


class Checkpointer:
    """Saves the state of one run; all ranks call every method, and the first one writes, while training goes on."""

    def __init__(self, setup: TrainingSetup, start: RunStart, stop: signals.StopRequest) -> None:
        self.setup, self.start, self.stop = setup, start, stop
        self.config, self.ranks, self.state = setup.config, setup.ranks, start.state
        self.saved_at = time.monotonic()
        self.writer = _Writer()

    def save(self, *, is_best: bool = False) -> None:
        """Begin to write the last checkpoint, and keep those of the last few steps; the best one is the same file.

        A run goes on from the last one, so it is never of an earlier step than the best one. A write that was begun
        before is waited for.

        Raises:
            Diverged: weights or statistics are not finite, though no loss was: the checkpoints of before stay.
            OSError: the write before has failed.
        """
        self.writer.wait()
        run_facts = {
            "config": self.config.model_dump(mode="json"),
            "classes": self.setup.classes,
            "samples": self.setup.samples,
            "precision": self.start.precision,
            "batch_size": self.start.batch_size,
            "weights": self.start.weights,
            "history": history.plain(self.start.history),
        }
        epochs = self.setup.clock.epoch(self.state.step)
        content = checkpoint_content(self.state, epochs, run_facts, self.ranks)
        self._check_finite(content)
        if self.ranks.is_main:
            content = copy_to_host(content, self.ranks.device)
            self.writer.start(lambda: self._write(content, is_best))
        self.saved_at = time.monotonic()

    def _write(self, content: dict[str, Any], is_best: bool) -> None:
        """Write the file; killed before it is the last one, too, a run goes on from before, and finds the best again."""
        run = RunDirectory(self.config.run_dir)
        best, last = run.checkpoint("best"), run.checkpoint("last")
        checkpoints.save(best if is_best else last, content)
        if is_best:
            checkpoints.link(best, last)
        checkpoints.keep_last(last, content["step"], self.config.train.keep_checkpoints)

    def finish(self) -> None:
        """Wait until everything that was saved is on the disk, on all ranks.

        Raises:
            OSError: the write has failed.
        """
        self.writer.wait()
        self.ranks.barrier()

    def _check_finite(self, content: dict[str, Any]) -> None:
        names = (
            [*not_finite(content["model"]), *not_finite(content["ema"] or {})] if self.ranks.is_main else []
        )
        if names := self.ranks.broadcast(names):
            raise Diverged(
                f"step {self.state.step}: training has diverged, and numbers are not finite, in {name_some(names)}; "
                "lower optim.lr or set optim.clip_norm"
            )

    def save_if_due(self, meter: EpochMeter) -> None:
        """Within an epoch: save at the configured interval of steps or minutes, and before the run stops.

        Raises:
            Stopped: any rank was asked to stop.
            OSError: the write before has failed.
        """
        self.writer.raise_error()
        stopping, due = self.ranks.any_rank(self.stop.name is not None, self._is_due())
        if stopping or due:
            self.state.totals = meter.totals()
            self.save()
        if stopping:
            self.finish()
            raise self._stopped()

    def stop_if_asked(self) -> None:
        """Between two batches of validation: save and stop, unless validation is within an epoch.

        There a stop waits for validation's end: the checkpoint of that step means that it is done.

        Raises:
            Stopped: any rank was asked to stop.
        """
        asked = self.stop.name is not None and self.setup.is_epoch_end(self.state.step)
        if self.ranks.any_rank(asked)[0]:
            self.save()
            self.finish()
            raise self._stopped()

    def _is_due(self) -> bool:
        every, minutes = self.config.train.checkpoint_every_steps, self.config.train.checkpoint_every_minutes
        by_step = every is not None and self.state.step % every == 0
        return by_step or (minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes)

    def _stopped(self) -> Stopped:
        signal = self.stop.name or "a signal on another rank"
        path = RunDirectory(self.config.run_dir).checkpoint("last")
        asked = self.config.train.resume
        go_on = "the same command resumes" if asked == "auto" else "it resumes with train.resume=auto"
        return Stopped(
            f"stopped by {signal} at step {self.state.step} of {self.setup.last_step}, saved in {path}; {go_on}"
        )


def copy_to_host(content: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A copy that the next steps do not change, with its tensors on the CPU; a GPU is waited for once."""
    from_gpu = device.type == "cuda"

    def copied(tensor: Tensor) -> Tensor:
        here = torch.empty_like(tensor, device="cpu", pin_memory=from_gpu)
        return here.copy_(tensor, non_blocking=from_gpu)

    copy: dict[str, Any] = pytree.tree_map_only(Tensor, copied, content)
    if from_gpu:
        torch.cuda.current_stream(device).synchronize()
    return copy


class _Writer:
    """A thread that writes one file at a time; the program does not end before it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._write: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begin a write. The one before has to be waited for."""
        assert self._write is None, "one write at a time"
        self._write = self._thread.submit(write)

    def wait(self) -> None:
        """Wait for the write that was begun, if there is one, and raise its error, once."""
        if self._write is not None:
            concurrent.futures.wait([self._write])
            write, self._write = self._write, None
            write.result()

    def close(self) -> None:
        """`wait`, and end the thread."""
        self._thread.shutdown()
        self.wait()

    def raise_error(self) -> None:
        """Raise the error of a write that has ended."""
        if self._write is not None and self._write.done():
            self.wait()
