"""The next trial of a sweep as a task of a worker process."""

import math
import secrets
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.common import console, signals
from pipeline.common.errors import ConfigError, Diverged, FileRefused, Stopped, UserError
from pipeline.config.schema import Config
from pipeline.experiments import worker_pool
from pipeline.experiments.sweeps import results
from pipeline.experiments.sweeps.plan import SweepPlan
from pipeline.experiments.sweeps.trials import Claim, Trials
from pipeline.experiments.worker_pool import Outcome
from pipeline.models.option_errors import quoted


class TrialEnd(NamedTuple):
    """How a trial ended."""

    outcome: str
    """complete, pruned, diverged or failed"""
    value: float | None = None
    why: str | None = None
    """the reason where there is no value"""


class Pruned(Stopped):
    """The sweep ends a trial early."""


@dataclass(frozen=True)
class TrialTask:
    """Claim one trial and train it; the outcome's result is None when none is left."""

    plan: SweepPlan
    pruner: str | None
    limit: int
    """trials of the sweep, whoever runs them"""
    command: str = field(default_factory=lambda: secrets.token_hex(8))
    """name of the command that runs the task"""

    def run(self) -> Outcome:
        """Claim a trial and train it, with standard error in its `output.log`."""
        with signals.deferred() as stop:  # no signal may interrupt a write to the journal
            trials = Trials(self.plan, self.pruner)
            claim = trials.claim(self.limit)
            if claim is None:
                return Outcome("done")
            try:
                worker_pool.redirect_output(self.plan.run_dir(claim.number) / "output.log")
                end = self._train_or_give_up(trials, claim, stop)
                trials.finish(claim.number, *end)
            except BaseException:  # but not a kill: it leaves the claim
                trials.release(claim.number)
                raise
            finally:
                claim.lock.close()
        return Outcome("done", result={"number": claim.number, **end._asdict()})

    def _train_or_give_up(self, trials: Trials, claim: Claim, stop: signals.StopRequest) -> TrialEnd:
        """As `_train`, but an error that ends a trial twice counts as its failure, so that the sweep goes on."""
        try:
            return self._train(trials, claim, stop)
        except (Stopped, FileRefused, OSError):  # of no combination of values
            raise
        except Exception as error:
            said = str(error) if isinstance(error, UserError) else quoted(error)
            if not trials.fails_again(claim.number, said, self.command):
                raise
            if not isinstance(error, UserError):
                traceback.print_exc()
            return TrialEnd("failed", why=f"twice: {said}")

    def _train(self, trials: Trials, claim: Claim, stop: signals.StopRequest) -> TrialEnd:
        """Train the trial; how it ended."""
        from pipeline.data.prepare import prepare
        from pipeline.training.trainer import train

        number, why = claim.number, None
        try:
            config = self.plan.config(number, claim.values)
            with signals.raising():
                prepare(config)
            if stop.name is not None:
                raise Stopped(f"stopped by {stop.name} before it began; the same command resumes")
            train(config, watch=PruningTracker(trials, number, config))
        except Pruned as pruned:
            console.say(str(pruned))
            return TrialEnd("pruned", results.value(self.plan, number))
        except ConfigError as error:  # also where memory does not suffice
            return TrialEnd("failed", why=str(error))
        except Diverged as error:
            why = str(error)
        value = None if why else results.value(self.plan, number)
        if value is None:
            return TrialEnd("diverged", why=why or f"{self.plan.metric} was never a number")
        return TrialEnd("complete", value)


class PruningTracker:
    """A tracker that reports the value of each epoch to the sweep, and ends the trial when the sweep prunes it."""

    def __init__(self, trials: Trials, number: int, config: Config) -> None:
        self._trials, self._number, self._epochs = trials, number, config.train.epochs

    def log(self, record: Mapping[str, Any]) -> None:
        """Take a record.

        Raises:
            Pruned: others were better at this epoch.
        """
        value = record.get(self._trials.plan.metric)
        if record["kind"] != "epoch" or value is None:
            return
        epoch = int(record["epoch"])
        ended = self._trials.report(self._number, epoch, float(value))
        if ended and epoch < self._epochs and not math.isnan(value):
            raise Pruned(f"pruned after epoch {epoch} of {self._epochs}: others were better there")

    def close(self) -> None:
        """No more records will come."""
