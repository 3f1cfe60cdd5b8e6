"""A turn of a worker: the next trial of the sweep, from being taken to its end."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.common import console, signals
from pipeline.common.errors import ConfigError, Stopped, UserError
from pipeline.common.locks import Lock
from pipeline.config.schema import Config
from pipeline.experiments import worker_pool
from pipeline.experiments.sweeps import results
from pipeline.experiments.sweeps.plan import SweepPlan
from pipeline.experiments.sweeps.trials import Claim, Trials
from pipeline.experiments.worker_pool import Outcome

PREPARING = "data.lock"


class Pruned(Stopped):
    """The sweep ends a trial early."""


@dataclass(frozen=True)
class TrialTask:
    """A task that does one trial; its result is None when there was none left."""

    plan: SweepPlan
    pruner: str | None
    most: int
    """trials of the sweep, whoever does them"""

    def do(self) -> Outcome:
        """Take a trial and do it; what it says goes to its `output.log`."""
        with signals.deferred() as stop:  # the journal is not to be left in the middle of a write
            trials = Trials(self.plan, self.pruner)
            claim = trials.take(self.most)
            if claim is None:
                return Outcome("done")
            try:
                worker_pool.redirect_output(self.plan.run_dir(claim.number) / "output.log")
                outcome, value, why = self._train(trials, claim, stop)
                trials.end(claim.number, outcome, value, why)
            except BaseException:  # a kill leaves it as it is
                trials.give_back(claim.number)
                raise
            finally:
                claim.lock.close()
        about = {"number": claim.number, "outcome": outcome, "value": value, "why": why}
        return Outcome("done", result=about)

    def _train(
        self, trials: Trials, claim: Claim, stop: signals.StopRequest
    ) -> tuple[str, float | None, str | None]:
        """What came of the trial, its value, and why it has none."""
        import torch

        from pipeline.training.trainer import train

        number, why = claim.number, None
        try:
            config = self.plan.config(number, claim.values)
            self._prepare(config)
            if stop.name is not None:
                raise Stopped(f"stopped by {stop.name} before it began; the same command goes on")
            train(config, watch=Watch(trials, number, config))
        except Pruned as pruned:
            console.say(str(pruned))
            return "pruned", results.value(self.plan, number), None
        except ConfigError as error:
            return "failed", None, str(error)
        except torch.OutOfMemoryError as error:
            return "failed", None, " ".join(str(error).split())
        except UserError as error:
            if not worker_pool.diverged(error):
                raise
            why = str(error)
        value = None if why else results.value(self.plan, number)
        if value is None:
            return "diverged", None, why or f"{self.plan.metric} was never a number"
        return "complete", value, None

    def _prepare(self, config: Config) -> None:
        """The data of a trial, by one process at a time."""
        from pipeline.data.prepare import prepare

        preparing = Lock.hold(self.plan.folder / PREPARING)
        try:
            prepare(config)
        finally:
            preparing.close()


class Watch:
    """A tracker that tells the sweep each epoch's value, and ends the trial when the sweep says so."""

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
