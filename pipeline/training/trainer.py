"""A whole run: from a configuration to `best.pt`, and from wherever it was interrupted."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from pipeline.common import console, files, hardware, signals
from pipeline.common.errors import Stopped, UserError
from pipeline.config.schema import Config
from pipeline.data import sampling
from pipeline.data.loader import Batch
from pipeline.distributed import process_group
from pipeline.distributed.data_parallel import replicate
from pipeline.distributed.process_group import Ranks
from pipeline.inference import predict
from pipeline.plots import training_curves
from pipeline.runs import status
from pipeline.runs.checkpoints import keep_last, save
from pipeline.runs.trackers import MultiTracker, NullTracker, Tracker, build_tracker
from pipeline.training import gradient_histograms, phases, resume, setup, step
from pipeline.training.description import describe_run
from pipeline.training.epoch_meter import EpochMeter, NotFinite
from pipeline.training.freezing import FreezeSchedule
from pipeline.training.optimizer import carry_momentum
from pipeline.training.setup import TrainingSetup
from pipeline.training.state import Best, Totals, checkpoint_content

REDRAW_S = 60.0  # of curves.png, at the most


def train(config: Config, watch: Tracker = NullTracker()) -> dict[str, Any]:  # noqa: B008  # it has no state
    """Train, or go on training; return where the best checkpoint is (on the first rank).

    Args:
        watch: is handed every record on the first rank; what it raises ends the run.

    Raises:
        UserError: data, weights or checkpoint are missing or do not fit, or the loss diverged.
        Stopped: a signal came; `last.pt` holds everything to go on from.
    """
    joined = process_group.join(config.train.device, config.distributed.timeout_s)
    with joined as ranks, signals.deferred() as stop:
        run = Trainer(config, ranks, stop)
        try:
            with status.running(config.run_dir) if ranks.is_main else nullcontext():
                run.open(watch)
                run.complete()
        finally:
            run.close()
        return run.result() if ranks.is_main else {}


class Trainer:
    """One run on one rank: the `TrainState` on its way through the epochs."""

    track: Tracker = NullTracker()

    def __init__(self, config: Config, ranks: Ranks, stop: signals.StopRequest) -> None:
        self.config, self.ranks, self.stop = config, ranks, stop
        self.setup = TrainingSetup(config, ranks)
        self.calendar = self.setup.calendar
        self.last_step = min(self.calendar.last_step, config.train.max_steps or self.calendar.last_step)
        self.start = setup.resume_or_start(self.setup)
        self.state, self.settings = self.start.state, self.start.step_settings(config, ranks)
        self.freezing = FreezeSchedule(config, self.state.model)
        self.ddp_model, self.frozen = self.state.model, -1
        # Of an epoch that an earlier process learned, and that is only to be closed, the speed is not known.
        self.speed: dict[str, float | None] = {"images_per_s": None, "data_wait": None}
        self.saved_at = self.drawn_at = time.monotonic()
        if ranks.is_main and resume.wanted_of(config) == "never":
            resume.put_aside(config.run_dir)

    def open(self, watch: Tracker) -> None:
        """Say what begins, and open the log, on the first rank."""
        if self.ranks.is_main:
            if not self._finished():  # else leave its record alone: it may be of other code, another machine
                describe_run(self.setup, self.start, self.last_step)
            self.track = MultiTracker(build_tracker(self.config, self.state.step), watch)

    def complete(self) -> None:
        """Learn and validate, epoch by epoch, until the last step.

        Raises:
            UserError: the loss is not finite.
        """
        try:
            while True:
                if self.state.totals.seen and self._epoch_is_over():
                    self._close_epoch()
                if self._finished():
                    return
                self._train_epoch()
        except NotFinite as found:
            raise self._diverged(found) from found

    def close(self) -> None:
        """End the log, and draw it."""
        self.track.close()
        if self.ranks.is_main:
            training_curves.draw(self.config.run_dir)

    def result(self) -> dict[str, Any]:
        """Where the run and its best epoch are, in plain types."""
        best = self.state.best
        assert best is not None, "the last step closes an epoch, and an epoch that is closed has a best"
        chosen_by = "last epoch" if best.top1 is None else "validation"
        path = self.config.checkpoints_dir / "best.pt"
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

    def _epoch_is_over(self) -> bool:
        return self.state.step in self.calendar.starts or self.state.step >= self.last_step

    def _finished(self) -> bool:
        """Whether the last step is taken, or validation has not improved for too long."""
        best, patience = self.state.best, self.config.train.early_stop_epochs
        over = self.calendar.epochs_over(self.state.step)
        waited_enough = bool(patience and best and over - best.epoch >= patience)
        closed = not self.state.totals.seen
        return closed and (self.state.step >= self.last_step or (waited_enough and self._epoch_is_over()))

    # Learning

    def _train_epoch(self) -> None:
        """Learn from wherever the epoch stands to its end, to the last step, or to a signal."""
        state, epoch = self.state, self.calendar.epoch(self.state.step)
        begun = state.step - self.calendar.starts[epoch]
        batches = self.setup.epoch_batches(epoch)[begun : begun + self.last_step - state.step]
        served = self.setup.train_loader.batches(epoch, sampling.shard_batches(batches, self.ranks))
        self._set_train_mode(epoch)
        meter = EpochMeter(state.totals, self.ranks)
        with console.bar(f"epoch {epoch + 1}/{self.config.train.epochs}", sum(map(len, batches))) as bar:
            for draws, batch in zip(batches, meter.timed(served), strict=True):
                self._switch_phase_if_due()
                rates = phases.rates(self.config, state.phase, state.step, self.calendar)
                inspect = self._log_gradients if self._histograms_are_due() else None
                of_batch = step.train_step(
                    state, self.ddp_model, batch, len(draws), rates, self.settings, inspect
                )
                meter.add(state.step, draws, of_batch)
                bar.advance(len(draws), **self._log_step(rates, meter))
                if self._look_is_due():
                    self._look_within_epoch(epoch, meter)
                stopping, due = self.ranks.any_rank(self.stop.name is not None, self._save_is_due())
                if stopping or due:
                    state.totals = meter.totals()
                    self._save("last.pt")
                if stopping:
                    self._stop()
        state.totals = meter.totals()
        self.speed = {**meter.speed()}

    def _set_train_mode(self, epoch: int) -> None:
        """Training mode; what exchanges gradients is made anew for the parameters that have some."""
        frozen = self.freezing.apply(epoch)
        if frozen != self.frozen:
            model = self.state.model
            compiled = torch.compile(model) if self.config.train.compile else model
            replica = replicate(compiled, self.config.distributed, self.ranks)  # type: ignore[arg-type]
            self.ddp_model, self.frozen = replica, frozen  # type: ignore[assignment]

    def _switch_phase_if_due(self) -> None:
        """Change the optimizer when the phase that the next step belongs to is another one."""
        state, optim_config = self.state, self.config.optim
        phase = optim_config.resolved_phases[state.phase.index]
        if not phases.is_over(phase, state.phase, state.step, self.calendar):
            return
        state.phase = phases.following(optim_config, state.phase, state.step)
        phase, before = optim_config.resolved_phases[state.phase.index], state.optimizer
        state.optimizer = self.setup.build_optimizer(state.model, state.phase)
        if phase.carry_momentum:
            carry_momentum(before, state.optimizer, phase.momentum or 0.0)
        epoch = self.calendar.moment(state.step).epoch
        self.track.log(
            {
                "kind": "phase",
                "step": state.step + 1,
                "epoch": epoch,
                "phase": phase.name,
                "lr": state.phase.lr,
            }
        )
        console.say(
            f"phase  {phase.name} from step {state.step + 1} (epoch {epoch:.4g}), lr {state.phase.lr:.4g}"
        )

    def _log_step(self, rates: phases.Rates, meter: EpochMeter) -> dict[str, float]:
        """Log every so many steps, and tell the bar: only then are the losses waited for."""
        if self.state.step % self.config.tracking.log_every_steps:
            return {}
        last = meter.last()
        self.track.log({"kind": "step", "step": self.state.step, **rates._asdict(), **last})
        return {"loss": last["loss"], "lr": rates.lr}

    def _histograms_are_due(self) -> bool:
        every = self.config.tracking.gradients_every_steps
        return self.ranks.is_main and every is not None and (self.state.step + 1) % every == 0

    def _log_gradients(self) -> None:
        found = gradient_histograms.histograms(self.state.model)
        self.track.log({"kind": "gradients", "step": self.state.step + 1, "histograms": found})

    def _look_is_due(self) -> bool:
        every = self.config.train.eval_every_steps
        return every is not None and self.state.step % every == 0 and not self._epoch_is_over()

    def _look_within_epoch(self, epoch: int, meter: EpochMeter) -> None:
        """Validate between two steps; the best so far is saved. Then go on in training mode."""
        state, last = self.state, Best(epoch + 1, self.state.step)
        with meter.paused():
            last.top1, last.loss = self._validate()
        chosen = self._choose(last)
        within = self.calendar.moment(state.step).epoch
        looked = {"val_loss": last.loss, "val_top1": last.top1}
        self.track.log({"kind": "val", "step": state.step, "epoch": within, **looked})
        if chosen:
            state.totals = meter.totals()
            self._save("best.pt")
        self._set_train_mode(epoch)

    # The end of an epoch

    def _close_epoch(self) -> None:
        """Validate, see whether it is the best, log, save."""
        state, totals = self.state, self.state.totals
        now = Best(self.calendar.epochs_over(state.step), state.step)
        if len(self.setup.val_rows):
            now.top1, now.loss = self._validate()
            phases.observe(self.config, state.phase, now.loss)
        chosen = self._choose(now)
        record = self._epoch_record(now, totals)
        self.track.log(record)
        state.totals = Totals()
        if chosen:
            self._save("best.pt")
        self._save("last.pt")
        if self.ranks.is_main and time.monotonic() - self.drawn_at >= REDRAW_S:
            self.drawn_at = time.monotonic()
            training_curves.draw(self.config.run_dir)
        shown = (
            "lr",
            "train_loss",
            "train_top1",
            "val_loss",
            "val_top1",
            "grad_norm",
            "images_per_s",
            "data_wait",
        )
        figures = [f"{name} {record[name]:.4g}" for name in shown if record[name] is not None]
        epoch = f"epoch {now.epoch}/{self.config.train.epochs}"
        console.say("  ".join([epoch, *figures, *["best so far"] * chosen]))

    def _choose(self, now: Best) -> bool:
        """Whether a look is the best so far; if it is, it becomes the state's."""
        chosen = now.beats(self.state.best)
        self.state.best = now if chosen else self.state.best
        return chosen

    def _epoch_record(self, now: Best, totals: Totals) -> dict[str, Any]:
        state = self.state
        rates = phases.rates(self.config, state.phase, state.step - 1, self.calendar)
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
            "grad_norm": totals.gradient_norm / totals.steps,
            **self.speed,
            "memory_gib": hardware.peak_bytes(self.ranks.device) / 2**30,
        }

    def _validate(self) -> tuple[float, float]:
        rows = self.setup.val_rows
        batches, _ = sampling.distribute_batches(
            sampling.in_order(rows, self.config.eval.batch_size), self.ranks
        )
        served = self._until_stopped(self.setup.val_loader.batches(0, batches))
        looked = predict.look(self.state.eval_model, served, rows, self.settings.precision, self.ranks)
        return looked.top1_and_loss(self.setup.labels)

    def _until_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            # Within an epoch a stop waits for the look's end: a checkpoint of its step means that it was made.
            if self.ranks.any_rank(self.stop.name is not None and self._epoch_is_over())[0]:
                self._save("last.pt")
                self._stop()
            yield batch

    # Saving and ending

    def _save_is_due(self) -> bool:
        every, minutes = self.config.train.checkpoint_every_steps, self.config.train.checkpoint_every_minutes
        by_step = every is not None and self.state.step % every == 0
        return by_step or (minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes)

    def _save(self, name: str) -> None:
        about = {
            "config": self.config.model_dump(mode="json"),
            "classes": self.setup.classes,
            "samples": self.setup.samples,
            "precision": self.settings.precision,
            "batch_size": self.start.batch_size,
            "weights": self.start.weights,
        }
        content = checkpoint_content(self.state, self.calendar.epoch(self.state.step), about, self.ranks)
        if self.ranks.is_main:
            folder = self.config.checkpoints_dir
            save(folder / name, content)
            if name == "last.pt":
                keep_last(folder, self.state.step, self.config.train.keep_checkpoints)
        self.saved_at = time.monotonic()
        self.ranks.barrier()

    def _stop(self) -> None:
        raise Stopped(
            f"stopped by {self.stop.name or 'a signal on another rank'} at step {self.state.step} of "
            f"{self.last_step}, saved in {self.config.checkpoints_dir / 'last.pt'}; the same command goes on"
        )

    def _diverged(self, found: NotFinite) -> UserError:
        """Write down which images were in the batch; the sentence that ends the run."""
        path = self.config.run_dir / "diverged.json"
        images = self.setup.ids[found.draws % len(self.setup.labels)].tolist()
        rates = phases.rates(self.config, self.state.phase, found.step - 1, self.calendar)
        if self.ranks.is_main:
            about = {"step": found.step, "loss": str(found.loss), **rates._asdict(), "images": images}
            files.write_json(path, about)
        return UserError(
            f"step {found.step}: the loss is {found.loss}, training has diverged at learning rate {rates.lr:g}; "
            f"lower optim.lr or set optim.clip_norm; the ids of the batch's images are in {path}"
        )
