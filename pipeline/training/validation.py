"""Validation of a run, at the end of an epoch and between its steps, and the choice of the best checkpoint."""

from pipeline.common import signals
from pipeline.inference.predict import predict_rows
from pipeline.runs.directory import RunDirectory
from pipeline.runs.trackers import Tracker
from pipeline.training.checkpointing import Checkpointer
from pipeline.training.epoch_meter import EpochMeter
from pipeline.training.setup import TrainingSetup
from pipeline.training.start import RunStart
from pipeline.training.state import Best


class Validator:
    """Measures the state of one run on the validation images; all ranks call every method."""

    def __init__(self, setup: TrainingSetup, start: RunStart, checkpointer: Checkpointer) -> None:
        self.setup, self.config, self.ranks = setup, setup.config, setup.ranks
        self.state, self.precision, self.checkpointer = start.state, start.precision, checkpointer

    def measure(self) -> tuple[float, float]:
        """Top-1 (0..1) and mean cross-entropy (nats) over the validation images; the model is in eval mode then.

        Raises:
            Stopped: at the end of an epoch, a rank was asked to stop.
        """
        try:
            predictions = predict_rows(
                self.state.eval_model,
                self.setup.val_loader,
                self.setup.val_rows,
                self.precision,
                self.ranks,
                batch_size=self.config.eval.batch_size,
                before_batch=self.checkpointer.stop_if_asked,
            )
        except signals.StoppedWaiting:
            if self.ranks.world_size == 1:  # several would have to save together
                self.checkpointer.stop_if_asked()
            raise
        return predictions.top1_and_loss(self.setup.labels)

    def run_if_due(self, meter: EpochMeter, tracker: Tracker) -> bool:
        """Between two steps: validate every `train.eval_every_steps`; save where it is the best so far.

        Returns whether it was due.
        """
        state, every = self.state, self.config.train.eval_every_steps
        if every is None or state.step % every or self.setup.is_epoch_end(state.step):
            return False
        now = Best(self.setup.clock.epochs_begun(state.step), state.step)
        with meter.paused():
            now.top1, now.loss = self.measure()
        is_best = self.keep_if_best(now)
        self.log(now, tracker)
        if is_best:
            state.totals = meter.totals()
            self.checkpointer.save(is_best=True)
        return True

    def keep_start(self, start: Best, tracker: Tracker) -> None:
        """Before a run's first step: log what its start has on validation, and save it as the best so far."""
        self.log(start, tracker)
        self.checkpointer.save(is_best=True)

    def log_adopted(self, tracker: Tracker) -> None:
        """On the first rank: log what the best of a checkpoint from elsewhere has, where the log does not have it."""
        best, log = self.state.best, RunDirectory(self.config.run_dir).read_log(steps=False)
        is_logged = best is not None and any(record["step"] == best.step for record in log.validations())
        if best is not None and best.top1 is not None and not is_logged:
            self.log(best, tracker)

    def log(self, now: Best, tracker: Tracker) -> None:
        """Write a record of a validation that ends no epoch."""
        epoch = self.setup.clock.moment(now.step).epoch
        tracker.log(
            {"kind": "val", "step": now.step, "epoch": epoch, "val_loss": now.loss, "val_top1": now.top1}
        )

    def keep_if_best(self, now: Best) -> bool:
        """Whether a validation is the best so far; if so, the state remembers it."""
        is_best = now.beats(self.state.best)
        self.state.best = now if is_best else self.state.best
        return is_best
