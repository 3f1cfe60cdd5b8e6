"""Writing `best.pt` and `last.pt` of a run: when they are due, and before a run that was asked to stop ends."""

import time
from typing import Any

from pipeline.common import signals
from pipeline.common.errors import Diverged, Stopped, name_some
from pipeline.models.pretrained import not_finite
from pipeline.runs import checkpoints
from pipeline.runs.directory import Checkpoint, RunDirectory
from pipeline.training.epoch_meter import EpochMeter
from pipeline.training.setup import RunStart, TrainingSetup
from pipeline.training.state import checkpoint_content


class Checkpointer:
    """Saves the state of one run; all ranks call every method, and the first one writes."""

    def __init__(self, setup: TrainingSetup, start: RunStart, stop: signals.StopRequest) -> None:
        self.setup, self.start, self.stop = setup, start, stop
        self.config, self.ranks, self.state = setup.config, setup.ranks, start.state
        self.saved_at = time.monotonic()

    def save(self, name: Checkpoint) -> None:
        """Write the best or the last checkpoint; with the last one, keep those of the last few steps too.

        Raises:
            Diverged: weights or statistics are not finite, though no loss was: the checkpoints of before stay.
        """
        run_facts = {
            "config": self.config.model_dump(mode="json"),
            "classes": self.setup.classes,
            "samples": self.setup.samples,
            "precision": self.start.precision,
            "batch_size": self.start.batch_size,
            "weights": self.start.weights,
        }
        epochs = self.setup.clock.epoch(self.state.step)
        content = checkpoint_content(self.state, epochs, run_facts, self.ranks)
        self._check_finite(content)
        if self.ranks.is_main:
            path = RunDirectory(self.config.run_dir).checkpoint(name)
            checkpoints.save(path, content)
            if name == "last":
                checkpoints.keep_last(path, self.state.step, self.config.train.keep_checkpoints)
        self.saved_at = time.monotonic()
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
        """
        stopping, due = self.ranks.any_rank(self.stop.name is not None, self._is_due())
        if stopping or due:
            self.state.totals = meter.totals()
            self.save("last")
        if stopping:
            raise self._stopped()

    def stop_if_asked(self) -> None:
        """Between two batches of validation: save and stop, unless validation is within an epoch.

        There a stop waits for validation's end: the checkpoint of that step means that it is done.

        Raises:
            Stopped: any rank was asked to stop.
        """
        asked = self.stop.name is not None and self.setup.is_epoch_end(self.state.step)
        if self.ranks.any_rank(asked)[0]:
            self.save("last")
            raise self._stopped()

    def _is_due(self) -> bool:
        every, minutes = self.config.train.checkpoint_every_steps, self.config.train.checkpoint_every_minutes
        by_step = every is not None and self.state.step % every == 0
        return by_step or (minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes)

    def _stopped(self) -> Stopped:
        signal = self.stop.name or "a signal on another rank"
        path = RunDirectory(self.config.run_dir).checkpoint("last")
        return Stopped(
            f"stopped by {signal} at step {self.state.step} of {self.setup.last_step}, saved in {path}; "
            "the same command goes on"
        )
