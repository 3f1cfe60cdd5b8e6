"""The trials of a sweep, shared by all who work on it: who takes which, and what came of each.

They are an Optuna study in a journal, a file that is only appended to. Unlike SQLite it needs no locking of ranges
of a file, which many network file systems lack: a sweep may be shared over NFS (v4, or v3 with its lock service; with
the mount option nolock, let one machine alone work on it). Every lock is `flock`'s: the kernel gives it back when its
process dies, however it dies, so that a trial of a live process is never taken, and one of a dead process always is.
"""

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipeline.common import locks, seeding
from pipeline.common.locks import Lock
from pipeline.experiments.sweeps.parameter import Value
from pipeline.experiments.sweeps.plan import SweepPlan
from pipeline.runs.directory import RunDirectory

JOURNAL, LOCKED, TAKING = "study.journal", "study.journal.lock", "take.lock"
KILLED_AT_MOST = 3  # processes in a row that a trial may cost without a new checkpoint
optuna.logging.set_verbosity(optuna.logging.WARNING)


class _JournalLock:
    """Optuna's own locks of a journal outlive a killed process, and are broken by force half a minute later."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal

    def acquire(self) -> bool:
        """Hold the journal; half a line that a machine left as it died is taken off its end."""
        self._held = Lock.hold(self._journal.with_name(LOCKED))
        with self._journal.open("rb+") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Give the journal back."""
        self._held.close()


@dataclass(frozen=True)
class Claim:
    """A trial that this process does: nobody else takes it before `lock` is closed."""

    number: int
    values: dict[str, Value]
    lock: Lock


class Trials:
    """The study of a sweep, as this process sees it: nothing is kept between calls but what is in the journal."""

    def __init__(self, plan: SweepPlan, pruner: str | None) -> None:
        """pruner: median, hyperband or none; None: as the sweep's early_terminate says."""
        self.plan, self._pruner = plan, _pruner(plan, pruner)
        journal = plan.folder / JOURNAL
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.touch()
        backend = JournalFileBackend(str(journal), _JournalLock(journal))  # type: ignore[arg-type]
        self._storage = JournalStorage(backend)
        if not self._storage.get_all_studies():
            optuna.create_study(
                storage=self._storage,
                study_name=plan.name,
                direction="maximize" if plan.maximised else "minimize",
                load_if_exists=True,
            )
        self.study = optuna.load_study(study_name=plan.name, storage=self._storage, pruner=self._pruner)
        self._study_id = self._storage.get_study_id_from_name(plan.name)
        self.space = {key: parameter.drawn_from() for key, parameter in plan.searched.items()}

    def all(self) -> list[FrozenTrial]:
        """By number."""
        return self.study.get_trials(deepcopy=False)

    def values(self, trial: FrozenTrial) -> dict[str, Value]:
        """The parameters of a trial."""
        return {key: parameter.rounded(trial.params[key]) for key, parameter in self.plan.searched.items()}

    def take(self, most: int) -> Claim | None:
        """The next trial to be done: one whose process died, else a new one while there are fewer than `most`.

        Under a lock, so that all who work on the sweep together begin exactly `most` trials, each once.
        """
        taking = Lock.hold(self.plan.folder / TAKING)
        try:
            for trial in self.running():
                if claim := self._take_over(trial.number):
                    return claim
            number = len(self.all())
            if number >= most:
                return None
            drawn = self._draw(number)
            held = Lock.hold(self._lock_path(number))
            # One line of the journal, so that no kill leaves a trial without its parameters.
            self.study.add_trial(
                create_trial(state=TrialState.RUNNING, params=drawn, distributions=self.space)
            )
            return self._claim(number, held)
        finally:
            taking.close()

    def ended(self) -> list[FrozenTrial]:
        """Those of which it is known what came of them."""
        return [trial for trial in self.all() if trial.state.is_finished()]

    def running(self) -> list[FrozenTrial]:
        """Those that are under way, here or elsewhere, or whose process died."""
        return [trial for trial in self.all() if trial.state is TrialState.RUNNING]

    def abandoned(self) -> bool:
        """Whether the process of a trial that is under way has died."""
        return any(not locks.held(self._lock_path(trial.number)) for trial in self.running())

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Tell the value after an epoch (from 1); whether the trial is to be ended."""
        trial = self._trial(number)
        if epoch not in trial.intermediate_values:  # a resumed trial may close an epoch again
            self._storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
        return self._pruner.prune(self.study, self._trial(number))

    def end(self, number: int, outcome: str, value: float | None = None, why: str | None = None) -> None:
        """Say what came of a trial: complete (with its value), pruned, diverged or failed (with why)."""
        trial = self._trial(number)
        self._note(number, outcome=outcome, **({"why": why} if why else {}))
        if outcome == "complete":
            self.study.tell(number, value)
        elif outcome == "failed":
            self.study.tell(number, state=TrialState.FAIL)
        else:
            if outcome == "diverged":  # so that the sampler knows it for the worst of those that came as far
                step = 1 + max(trial.intermediate_values, default=0)
                self._storage.set_trial_intermediate_value(trial._trial_id, step, math.nan)
            self.study.tell(number, state=TrialState.PRUNED)

    def give_back(self, number: int) -> None:
        """Leave a trial to whoever goes on with it; its process was not killed."""
        self._note(number, taken=self._trial(number).user_attrs["taken"][:-1])

    def _take_over(self, number: int) -> Claim | None:
        """A trial that nobody is doing any more; one that has cost too many processes where it stands has failed."""
        held = Lock.free(self._lock_path(number))
        if held is None:
            return None
        trial = self._trial(number)
        if trial.state is not TrialState.RUNNING:  # it has just been ended
            held.close()
            return None
        saved = [one["saved"] for one in trial.user_attrs.get("taken", [])]
        if len(saved) >= KILLED_AT_MOST and set(saved[-KILLED_AT_MOST:]) == {self._saved(number)}:
            held.close()
            why = (
                f"{KILLED_AT_MOST} processes in a row were killed before it was saved again: memory, or time?"
            )
            self.end(number, "failed", why=why)
            return None
        return self._claim(number, held)

    def _claim(self, number: int, held: Lock) -> Claim:
        trial = self._trial(number)
        now = {"host": platform.node(), "pid": os.getpid(), "saved": self._saved(number)}
        self._note(number, taken=[*trial.user_attrs.get("taken", []), now])
        return Claim(number, self.values(trial), held)

    def _draw(self, number: int) -> dict[str, Any]:
        """The parameters of a new trial: a function of the seed, its number and what the others have come to."""
        if self.plan.sweep.method == "grid":
            return dict(self.plan.grid()[number])
        seed = seeding.seed_of("sweep", self.plan.common.seed, number) % 2**32
        sampler: BaseSampler = RandomSampler(seed)
        if self.plan.sweep.method == "bayes":
            sampler = TPESampler(seed=seed)  # what is under way counts as bad: its constant_liar
        copy = optuna.create_study(direction=self.study.direction, sampler=sampler)
        copy.add_trials(self.all())
        return copy.ask(self.space).params

    def _trial(self, number: int) -> FrozenTrial:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        return self._storage.get_trial(trial_id)

    def _note(self, number: int, **notes: Any) -> None:
        trial_id = self._trial(number)._trial_id
        for key, value in notes.items():
            self._storage.set_trial_user_attr(trial_id, key, value)

    def _lock_path(self, number: int) -> Path:
        return self.plan.run_dir(number) / "lock"

    def _saved(self, number: int) -> float:
        """When its last checkpoint was written, seconds since 1970; 0 without one."""
        last = RunDirectory(self.plan.run_dir(number)).checkpoint("last")
        return last.stat().st_mtime if last.is_file() else 0.0


def _pruner(plan: SweepPlan, name: str | None) -> BasePruner:
    """When a trial is ended before its last epoch.

    W&B's hyperband is what Optuna calls successive halving: the same epochs, the same share that goes on.
    """
    rule = plan.sweep.early_terminate
    if name == "median":
        return MedianPruner()
    if name == "hyperband":
        first, share = (rule.first_epoch, rule.eta) if rule else (1, 3)
        return HyperbandPruner(
            min_resource=first, max_resource=plan.common.train.epochs, reduction_factor=share
        )
    if name is None and rule is not None:
        return SuccessiveHalvingPruner(min_resource=rule.first_epoch, reduction_factor=rule.eta)
    return NopPruner()
