"""A whole run: from a configuration to `best.pt`, and from wherever it was interrupted."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from pipeline.common import console, files, hardware, signals
from pipeline.common.errors import CheckpointError, Diverged, close_after
from pipeline.config.schema import Config
from pipeline.data import sampling
from pipeline.data.loader import Batch
from pipeline.distributed import process_group
from pipeline.distributed.data_parallel import replicate
from pipeline.distributed.process_group import Ranks
from pipeline.runs import checkpoints
from pipeline.runs.directory import RunDirectory
from pipeline.runs.trackers import MultiTracker, NullTracker, Tracker, build_tracker
from pipeline.training import gradient_histograms, phases, resume
from pipeline.training.checkpointing import Checkpointer
from pipeline.training.compilation import Compilation
from pipeline.training.description import describe_run
from pipeline.training.epoch_meter import EpochMeter, NotFinite
from pipeline.training.freezing import FreezeSchedule
from pipeline.training.optimizer import carry_momentum
from pipeline.training.preflight import training_memory_errors
from pipeline.training.setup import TrainingSetup
from pipeline.training.start import optimizer_of_phase, resume_or_start
from pipeline.training.state import Best, Totals
from pipeline.training.step import skips_all, train_step
from pipeline.training.validation import Validator

REDRAW_S = 60.0  # between two drawings of curves.png, at least
SHOWN_OF_AN_EPOCH = (
    *("lr", "train_loss", "train_top1", "val_loss", "val_top1"),
    *("grad_norm", "images_per_s", "data_wait"),
)


def train(config: Config, watch: Tracker = NullTracker()) -> dict[str, Any]:  # noqa: B008  # it has no state
    """Train, or go on training; return where the best checkpoint is (on the first rank).

    Args:
        watch: is handed every record on the first rank; what it raises ends the run.

    Raises:
        UserError: data, weights or checkpoint are missing or do not fit; `Diverged`: the loss is not finite.
        Stopped: a signal came; `last.pt` holds everything to go on from.
    """
    joined = process_group.join(config.train, config.distributed.timeout_s)
    run = RunDirectory(config.run_dir)
    with joined as ranks, signals.deferred() as stop, ExitStack() as held:
        # Held before anything of the run is read: another process may train it until this one holds it.
        hold = held.enter_context(contextlib.closing(run.hold())) if ranks.is_main else None
        with training_memory_errors(config):
            trainer = Trainer(config, ranks, stop)
        if hold is not None and resume.requested(config) == "never":
            resume.put_aside(run, hold)
        with (
            close_after(trainer.close, console.warn),
            hold.running() if hold is not None else nullcontext(),
            training_memory_errors(config, trainer.start.batch_size),
        ):
            trainer.open(watch)
            trainer.run()
        return trainer.result() if ranks.is_main else {}


class Trainer:
    """One run on one rank: the `TrainState` on its way through the epochs."""

    tracker: Tracker = NullTracker()

    def __init__(self, config: Config, ranks: Ranks, stop: signals.StopRequest) -> None:
        self.config, self.ranks = config, ranks
        self.setup = TrainingSetup(config, ranks)
        self.clock = self.setup.clock
        self.start = resume_or_start(self.setup)
        self.state, self.settings = self.start.state, self.start.step_settings(config, ranks)
        self.checkpointer = Checkpointer(self.setup, self.start, stop)
        self.validator = Validator(self.setup, self.start, self.checkpointer)
        self.freeze_schedule = FreezeSchedule(config, self.state.model)
        self.compilation = Compilation(config)
        self.ddp_model: nn.Module = self.state.model
        self.wrapped_for: int | None = None  # the number of frozen stages that ddp_model was made for
        # The speed of an epoch that an earlier process trained, and that is only to be closed, is not known.
        self.speed: dict[str, float | None] = {"images_per_s": None, "data_wait": None}
        self.drawn_at = time.monotonic()
        # As the first rank has it: machines may have folders of their own.
        self.adopted = ranks.broadcast(resume.elsewhere(RunDirectory(config.run_dir), self.start.history))

    def open(self, watch: Tracker) -> None:
        """Describe the run, and open its log, on the first rank."""
        state, run = self.state, RunDirectory(self.config.run_dir)
        if self.adopted is not None:
            best = resume.adopt(run, self.start.history, state.best) if self.ranks.is_main else None
            state.best = self.ranks.broadcast(best)
        if self.ranks.is_main:
            if self.adopted or not self._is_finished():  # which keeps that of its own code and machine
                describe_run(self.setup, self.start)
            log_from = state.step or -1  # before the first step a log begins anew
            self.tracker = MultiTracker(build_tracker(self.config, log_from), watch)
            if self.adopted is not None:
                self.validator.log_adopted(self.tracker)

    def run(self) -> None:
        """Train and validate, epoch by epoch, until the last step.

        Raises:
            Diverged: the loss is not finite, or with fp16 no gradient is.
            Stopped: a signal came.
        """
        if self.state.step == 0 and self.state.best is not None:
            self.validator.keep_start(self.state.best, self.tracker)
        self._choose_start_if_none()
        try:
            while True:
                if self.state.totals.is_open and self.setup.is_epoch_end(self.state.step):
                    self._close_epoch()
                if skips_all(self.state, is_last=self.state.step >= self.setup.last_step):
                    raise self._skipped()
                if self._is_finished():
                    return self.checkpointer.finish()
                self._train_epoch()
        except NotFinite as error:
            raise self._diverged(error) from error

    def _choose_start_if_none(self) -> None:
        """Validate a checkpoint from elsewhere whose best one is gone: no epoch may be left to choose another."""
        state, setup = self.state, self.setup
        is_between = setup.is_epoch_end(state.step) and not state.totals.is_open and len(setup.val_rows) > 0
        if self.adopted and state.best is None and is_between:
            state.best = Best(self.clock.epochs_begun(state.step), state.step, *self.validator.measure())
            self.validator.keep_start(state.best, self.tracker)

    def close(self) -> None:
        """Wait for the last checkpoint, end the log, and draw it."""
        with close_after(self._draw, console.warn), close_after(self.tracker.close, console.warn):
            self.checkpointer.writer.close()

    def _draw(self) -> None:
        if self.ranks.is_main:
            from pipeline.plots import training_curves  # matplotlib need not be there for the first step

            training_curves.draw(RunDirectory(self.config.run_dir))

    def result(self) -> dict[str, Any]:
        """Where the run and its best epoch are, in plain types."""
        best = self.state.best
        if best is None:  # the last step closes an epoch, and an epoch that is closed has a best
            last = RunDirectory(self.config.run_dir).checkpoint("last")
            raise CheckpointError(
                f"{last}: damaged (best is missing); {checkpoints.ANOTHER}: train.resume=PATH"
            )
        chosen_by = "last epoch" if best.top1 is None else "validation"
        path = RunDirectory(self.config.run_dir).checkpoint("best")
        console.say(f"done   best epoch {best.epoch} (by {chosen_by}): {path}")
        return {
            "run": str(self.config.run_dir),
            "best_epoch": best.epoch,
            "best_step": best.step,
            "best_val_top1": best.top1,
            "chosen_by": chosen_by,
            "step": self.state.step,
            "checkpoint": str(path),
        }

    # One epoch

    def _train_epoch(self) -> None:
        """Train from wherever the epoch stands to its end, the last step, or a signal to stop."""
        state = self.state
        epoch, batches = self._rest_of_epoch()
        meter = EpochMeter(state.totals, self.ranks)
        shards = self._serve(epoch, sampling.shard_batches(batches, self.ranks), meter)
        self._set_train_mode(epoch)
        with console.bar(f"epoch {epoch + 1}/{self.config.train.epochs}", sum(map(len, batches))) as bar:
            for draws, batch in zip(batches, meter.timed(shards), strict=True):
                self._switch_phase_if_due()  # Adam -> SGD
                rates = self._rates(state.step)
                on_gradients = self._gradient_logger()
                compiles = self.compilation.is_due(batch, len(draws))
                with self.compilation.errors(), meter.paused() if compiles else nullcontext():
                    sums = train_step(
                        state, self.ddp_model, batch, len(draws), rates, self.settings, on_gradients
                    )
                    if compiles:
                        sums.tolist()  # waits for the device, too
                meter.add(state.step, draws, sums, timed=not compiles)
                bar.advance(len(draws), **self._log_step_if_due(rates, meter))
                if self.validator.run_if_due(meter, self.tracker):
                    self._set_train_mode(epoch)
                self.checkpointer.save_if_due(meter)  # raises Stopped when any rank was asked to stop
        state.totals = meter.totals()
        self.speed = meter.speed()

    def _serve(self, epoch: int, batches: list[npt.NDArray[np.int64]], meter: EpochMeter) -> Iterator[Batch]:
        """This rank's batches. When none comes after a signal, a single rank saves; several would have to together."""
        try:
            yield from self.setup.train_loader.batches(epoch, batches)
        except signals.StoppedWaiting:
            if self.ranks.world_size == 1:
                self.checkpointer.save_if_due(meter)  # raises Stopped and says where
            raise

    def _rest_of_epoch(self) -> tuple[int, list[npt.NDArray[np.int64]]]:
        """The epoch of the next step (from 0), and its batches that are still to come, over all ranks."""
        step = self.state.step
        epoch = self.clock.epoch(step)
        done = step - self.clock.starts[epoch]
        return epoch, self.setup.epoch_batches(epoch)[done : done + self.setup.last_step - step]

    def _set_train_mode(self, epoch: int) -> None:
        """Set training mode, but for what is frozen in the epoch; DDP buckets only what has gradients."""
        frozen_stages = self.freeze_schedule.apply(epoch)
        if frozen_stages != self.wrapped_for:
            self.ddp_model, self.wrapped_for = self._compile_and_wrap(), frozen_stages

    def _compile_and_wrap(self) -> nn.Module:
        model = self.compilation.of(self.state.model)
        return replicate(model, self.config.distributed, self.ranks)

    def _switch_phase_if_due(self) -> None:
        """Change the optimizer when the phase that the next step belongs to is another one, past those already over."""
        state, of_phase = self.state, self.config.optim.resolved_phases
        phase = before = of_phase[state.phase.index]
        while phases.is_over(phase, state.phase, state.step, self.clock):
            state.phase = phases.following(self.config.optim, state.phase, state.step)
            phase, optimizer = of_phase[state.phase.index], state.optimizer
            state.optimizer = optimizer_of_phase(self.config, state.model, state.phase)
            if phase.carry_momentum:
                carry_momentum(optimizer, state.optimizer, phase.momentum)
        if phase is before:
            return
        step, epoch, lr = state.step + 1, self.clock.moment(state.step).epoch, state.phase.lr
        self.tracker.log({"kind": "phase", "step": step, "epoch": epoch, "phase": phase.name, "lr": lr})
        console.say(f"phase  {phase.name} from step {step} (epoch {epoch:.4g}), lr {lr:.4g}")

    def _rates(self, step: int) -> phases.Rates:
        return phases.rates(self.config, self.state.phase, step, self.clock)

    def _gradient_logger(self) -> Callable[[], None] | None:
        """What logs histograms of the next step's gradients, where they are due."""
        every = self.config.tracking.gradients_every_steps
        if not self.ranks.is_main or every is None or (self.state.step + 1) % every:
            return None
        return self._log_gradients

    def _log_gradients(self) -> None:
        histograms = gradient_histograms.histograms(self.state.model)
        self.tracker.log({"kind": "gradients", "step": self.state.step + 1, "histograms": histograms})

    def _log_step_if_due(self, rates: phases.Rates, meter: EpochMeter) -> dict[str, float]:
        """Log every `tracking.log_every_steps`; return what the bar shows. Only then are losses read from the device."""
        if self.state.step % self.config.tracking.log_every_steps:
            return {}
        last = meter.last()
        self.tracker.log({"kind": "step", "step": self.state.step, **rates._asdict(), **last})
        return {"loss": last["loss"], "lr": rates.lr}

    # The end of an epoch, and of the run

    def _close_epoch(self) -> None:
        """Validate, keep the best, log, save.

        An epoch that `train.max_steps` cuts is closed as far as it went: its sums stay, and no rule takes its validation
        for that of an epoch. So a run that goes on closes it whole, with the weights of one that was not cut; the
        validation at the cut stays a candidate for best.pt and for early stopping.
        """
        self.checkpointer.writer.wait()  # an epoch that is logged follows one that is saved
        state, totals = self.state, self.state.totals
        is_whole = state.step in self.clock.starts
        rates = self._rates(state.step - 1)  # before a plateau lowers those of the next epoch
        now = Best(self.clock.epochs_begun(state.step), state.step)
        if len(self.setup.val_rows):
            now.top1, now.loss = self.validator.measure()
            if is_whole:
                phases.observe(self.config, state.phase, now.loss)
        is_best = self.validator.keep_if_best(now)
        record = self._epoch_record(now, totals, rates)
        self.tracker.log(record)
        if state.scaler.is_enabled():
            self._log_loss_scale(now.epoch, totals)
        state.totals = Totals() if is_whole else replace(totals, is_closed=True)
        self.checkpointer.save(is_best=is_best)
        if time.monotonic() - self.drawn_at >= REDRAW_S:
            self.drawn_at = time.monotonic()
            self._draw()
        figures = [f"{name} {record[name]:.4g}" for name in SHOWN_OF_AN_EPOCH if record[name] is not None]
        epoch = f"epoch {now.epoch}/{self.config.train.epochs}"
        validated = now.top1 is not None
        console.say("  ".join([epoch, *figures, *["best so far"] * (is_best and validated)]))

    def _epoch_record(self, now: Best, totals: Totals, rates: phases.Rates) -> dict[str, Any]:
        state = self.state
        return {
            "kind": "epoch",
            "step": state.step,
            "epoch": now.epoch,
            "phase": self.config.optim.resolved_phases[state.phase.index].name,
            **rates._asdict(),
            "train_loss": totals.loss / totals.seen,
            "train_top1": totals.correct / totals.seen,
            "val_loss": now.loss,
            "val_top1": now.top1,
            "grad_norm": totals.mean_gradient_norm,
            **self.speed,
            "memory_gib": hardware.peak_bytes(self.ranks.device) / 2**30,
        }

    def _log_loss_scale(self, epoch: int, totals: Totals) -> None:
        scale, skipped = self.state.scaler.get_scale(), totals.skipped_steps
        about = {"epoch": epoch, "loss_scale": scale, "skipped_steps": skipped}
        self.tracker.log({"kind": "fp16", "step": self.state.step, **about})
        if skipped:
            console.say(f"fp16   skipped {skipped} of {totals.steps} steps; the loss scale is {scale:g} now")

    def _is_finished(self) -> bool:
        """Whether the last step is taken and its epoch closed, or validation has not improved for too long."""
        if self.state.totals.is_open:
            return False
        best, patience, step = self.state.best, self.config.train.early_stop_epochs, self.state.step
        waited = self.clock.epochs_begun(step) - best.epoch if best else 0
        stops_early = bool(patience and best and waited >= patience)
        return step >= self.setup.last_step or (stops_early and self.setup.is_epoch_end(step))

    def _skipped(self) -> Diverged:
        return Diverged(
            f"step {self.state.step}: fp16 learns nothing, as the gradients are not finite even at a loss scale of "
            f"{self.state.scaler.get_scale():g}; set train.precision=bf16 or fp32, or lower optim.lr"
        )

    def _diverged(self, error: NotFinite) -> Diverged:
        """Write down which images were in the batch; return the sentence that ends the run."""
        path = RunDirectory(self.config.run_dir).diverged_file
        images = self.setup.ids[error.draws % len(self.setup.labels)].tolist()
        rates = self._rates(error.step - 1)
        if self.ranks.is_main:
            about = {"step": error.step, "loss": str(error.loss), **rates._asdict(), "images": images}
            files.write_json(path, about)
        return Diverged(
            f"step {error.step}: the loss is {error.loss}, training has diverged at learning rate {rates.lr:g}; "
            f"lower optim.lr or set optim.clip_norm; the ids of the batch's images are in {path}"
        )
