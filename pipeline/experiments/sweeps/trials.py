"""The trials of a sweep, shared by all its processes: who has claimed which, and the outcome of each.

They are an Optuna study in a journal, a file that is only appended to. Unlike SQLite it needs no locks on ranges
of a file, which many network file systems lack: a sweep may be shared over NFS (v4, or v3 with its lock service; with
the mount option nolock, run it on one machine only). Every lock is `flock`'s: the kernel releases it when its process
dies, however it dies. So a trial of a live process is never taken over, and one of a dead process always is.
"""

import json
import math
import os
import platform
import re
from collections.abc import Sequence
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
from pipeline.common.errors import DataError
from pipeline.common.locks import Lock
from pipeline.experiments.sweeps.parameter import Value
from pipeline.experiments.sweeps.plan import SweepPlan
from pipeline.runs.directory import RunDirectory

ENTRY = b'{"op_code":'  # with which each line of the journal begins
JOURNAL, LOCKED, TAKING = "study.journal", "study.journal.lock", "take.lock"
MOST_KILLS = 3  # processes in a row that a trial may lose without a new checkpoint
optuna.logging.set_verbosity(optuna.logging.WARNING)


class _JournalLock:
    """Replaces Optuna's locks, which outlive a killed process and are broken by force half a minute later."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal

    def acquire(self) -> bool:
        """Lock the journal, and cut off the half line that a machine may have left as it died."""
        self._held = Lock.hold(self._journal.with_name(LOCKED))
        try:
            _cut_half_line(self._journal)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Unlock the journal."""
        self._held.close()


def _cut_half_line(journal: Path) -> None:
    """Cut off what is behind the last end of a line, where it is the beginning of a line of Optuna's.

    Raises:
        DataError: a whole line, or what follows the last one, is not Optuna's; nothing is cut then.
    """
    with journal.open("rb+") as stream:
        if not stream.seek(0, os.SEEK_END):
            return
        stream.seek(-1, os.SEEK_END)
        if stream.read() == b"\n":
            return
        stream.seek(0)
        *lines, half = stream.read().split(b"\n")
        check_lines(journal, lines)
        if _is_entry(half):
            stream.write(b"\n")  # only its end was lost
            return
        if not (half.startswith(ENTRY) or ENTRY.startswith(half)):
            raise _damaged(journal, f"in line {len(lines) + 1}")
        stream.truncate(sum(len(line) + 1 for line in lines))


def check_lines(journal: Path, lines: Sequence[bytes]) -> None:
    """Raise a `DataError` unless each line is an entry of an Optuna journal."""
    for number, line in enumerate(lines, start=1):
        if not _is_entry(line):
            raise _damaged(journal, f"in line {number}")


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and isinstance(entry.get("op_code"), int)


def _damaged(journal: Path, where: str) -> DataError:
    return DataError(
        f"{journal}: not a sweep journal, or damaged {where}; restore the file from a copy, or begin another sweep "
        "with run.name=NAME"
    )


@dataclass(frozen=True)
class Claim:
    """A trial that this process runs; no other process claims it before `lock` is closed."""

    number: int
    values: dict[str, Value]
    lock: Lock


class Trials:
    """The Optuna study of a sweep; all its state is in the journal."""

    def __init__(self, plan: SweepPlan, pruner: str | None) -> None:
        """Open the study, or begin it.

        Args:
            pruner: median, hyperband or none; None: as the sweep's early_terminate says.

        Raises:
            DataError: the journal is damaged.
        """
        self.plan, self._pruner = plan, _pruner(plan, pruner)
        journal = plan.folder / JOURNAL
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.touch()
        lock = _JournalLock(journal)
        lock.acquire()
        try:
            check_lines(journal, journal.read_bytes().splitlines())
        finally:
            lock.release()
        backend = JournalFileBackend(str(journal), lock)  # type: ignore[arg-type]
        try:
            self._storage = JournalStorage(backend)
        except (LookupError, TypeError, ValueError, AssertionError) as error:
            raise _damaged(journal, f"({type(error).__name__})") from error
        if not self._storage.get_all_studies():
            optuna.create_study(
                storage=self._storage,
                study_name=plan.name,
                direction="maximize" if plan.maximised else "minimize",
                load_if_exists=True,
            )
        name = self._storage.get_all_studies()[0].study_name  # also where the folder was renamed
        self.study = optuna.load_study(study_name=name, storage=self._storage, pruner=self._pruner)
        self._study_id = self._storage.get_study_id_from_name(name)
        self.space = {key: parameter.optuna_distribution() for key, parameter in plan.searched.items()}

    def all(self) -> list[FrozenTrial]:
        """All trials by number."""
        return self.study.get_trials(deepcopy=False)

    def values(self, trial: FrozenTrial) -> dict[str, Value]:
        """The parameters of a trial."""
        return {key: parameter.rounded(trial.params[key]) for key, parameter in self.plan.searched.items()}

    def claim(self, limit: int) -> Claim | None:
        """Claim the next trial: one whose process died, else a new one while there are fewer than `limit`.

        A lock makes sure that all processes together start exactly `limit` trials, each once.
        """
        taking = Lock.hold(self.plan.folder / TAKING)
        try:
            for trial in self.running():
                if claim := self._claim_abandoned(trial.number):
                    return claim
            number = len(self.all())
            if number >= limit:
                return None
            parameters = self.draw_parameters(number)
            lock = Lock.hold(self._lock_path(number))
            # One line of the journal, so that no kill leaves a trial without its parameters.
            self.study.add_trial(
                create_trial(state=TrialState.RUNNING, params=parameters, distributions=self.space)
            )
            return self._sign(number, lock)
        finally:
            taking.close()

    def finished(self) -> list[FrozenTrial]:
        """The trials that have an outcome."""
        return [trial for trial in self.all() if trial.state.is_finished()]

    def running(self) -> list[FrozenTrial]:
        """The trials without an outcome: a process runs them, here or elsewhere, or died."""
        return [trial for trial in self.all() if trial.state is TrialState.RUNNING]

    def abandoned(self) -> list[FrozenTrial]:
        """The trials without an outcome and without a live process."""
        return [trial for trial in self.running() if not locks.held(self._lock_path(trial.number))]

    def claimable(self, limit: int) -> int:
        """The number of trials that `claim` has to give now, if no other process takes them.

        An abandoned trial has begun, so it is given also where there are `limit` trials or more.
        """
        return len(self.abandoned()) + max(0, limit - len(self.all()))

    def progress(self) -> tuple[int, int]:
        """The numbers of claims and of outcomes, which rise whenever a process begins or ends a trial."""
        claims = sum(len(trial.user_attrs.get("taken", [])) for trial in self.all())
        return claims, len(self.finished())

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Report the value after an epoch (from 1); return whether to prune the trial."""
        trial = self._trial(number)
        if epoch not in trial.intermediate_values:  # a resumed trial may complete an epoch again
            self._storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
        return self._pruner.prune(self.study, self._trial(number))

    def finish(self, number: int, outcome: str, value: float | None = None, why: str | None = None) -> None:
        """Write the outcome of a trial: complete (with its value), pruned, diverged or failed (with the reason)."""
        trial = self._trial(number)
        self._note(number, outcome=outcome, **({"why": why} if why else {}))
        if outcome == "complete":
            self.study.tell(number, value)
        elif outcome == "failed":
            self.study.tell(number, state=TrialState.FAIL)
        else:
            if outcome == "diverged":  # the sampler ranks it last among the trials that came as far
                step = 1 + max(trial.intermediate_values, default=0)
                self._storage.set_trial_intermediate_value(trial._trial_id, step, math.nan)
            self.study.tell(number, state=TrialState.PRUNED)

    def release(self, number: int) -> None:
        """Give a trial up to another process; it does not count as a kill."""
        self._note(number, taken=self._trial(number).user_attrs["taken"][:-1])

    def fails_again(self, number: int, why: str, command: str) -> bool:
        """Note why a trial fails; whether it has failed in the same way under an earlier command.

        Args:
            why: in words, in which numbers do not count.
            command: the name of the command that runs the trial.
        """
        kind = re.sub(r"0x[0-9a-f]+|\d+", "N", why)
        before = self._trial(number).user_attrs.get("failure", {})
        self._note(number, failure={"kind": kind, "command": command})
        return bool(before.get("kind") == kind and before["command"] != command)

    def _claim_abandoned(self, number: int) -> Claim | None:
        """Claim a trial whose process died; it has failed when too many died without a new checkpoint."""
        lock = Lock.free(self._lock_path(number))
        if lock is None:
            return None
        trial = self._trial(number)
        if trial.state is not TrialState.RUNNING:  # another process has just finished it
            lock.close()
            return None
        saved = [entry["saved"] for entry in trial.user_attrs.get("taken", [])]
        if len(saved) >= MOST_KILLS and set(saved[-MOST_KILLS:]) == {self._saved(number)}:
            lock.close()
            why = f"{MOST_KILLS} processes in a row were killed before it was saved again: memory, or time?"
            self.finish(number, "failed", why=why)
            return None
        return self._sign(number, lock)

    def _sign(self, number: int, lock: Lock) -> Claim:
        """Note in the journal that this process has the trial."""
        trial = self._trial(number)
        now = {"host": platform.node(), "pid": os.getpid(), "saved": self._saved(number)}
        self._note(number, taken=[*trial.user_attrs.get("taken", []), now])
        return Claim(number, self.values(trial), lock)

    def draw_parameters(self, number: int) -> dict[str, Any]:
        """The parameters of a new trial: a function of the seed, its number and the results of the others."""
        if self.plan.sweep.method == "grid":
            return dict(self.plan.grid()[number])
        seed = seeding.seed_of("sweep", self.plan.common.seed, number) % 2**32
        sampler: BaseSampler = RandomSampler(seed)
        if self.plan.sweep.method == "bayes":
            sampler = TPESampler(seed=seed)  # running trials count as bad: its constant_liar
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
        """The time of its last checkpoint, seconds since 1970; 0 without one."""
        last = RunDirectory(self.plan.run_dir(number)).checkpoint("last")
        return last.stat().st_mtime if last.is_file() else 0.0


def _pruner(plan: SweepPlan, name: str | None) -> BasePruner:
    """The rule that ends a trial before its last epoch.

    W&B's hyperband is Optuna's successive halving: the same epochs, the same share that goes on.
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
