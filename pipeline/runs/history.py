"""Which processes trained a run: code, configuration and first step of each, in history.json and in every checkpoint.

config.yaml and environment.json are those of the last process alone. The history is that of the weights: a process adds
itself to the history in the checkpoint that it goes on from, so one that saved nothing is not in that of the next, but
for one that has made a checkpoint from elsewhere the run's last one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common import files
from pipeline.runs import checkpoints, environment
from pipeline.runs.directory import RunDirectory

FILE = RunDirectory(Path()).history_file.name


@dataclass(frozen=True)
class TrainingProcess:
    """A process that began to train.

    time: UTC, ISO 8601; step: how many were taken before it; code_sha256: of the code that makes numbers; configuration:
    as it is dumped; resumed_from: a checkpoint, None for new weights; forced: keys changed with train.resume_force;
    computed_on: what of the machine may change bits, and the number of ranks; empty in one of an earlier version.
    """

    time: str
    step: int
    code_sha256: str
    configuration: dict[str, Any]
    resumed_from: str | None
    forced: list[str]
    computed_on: dict[str, Any] = field(default_factory=dict)


class Held(NamedTuple):
    """What a checkpoint says. starts: none in one of an earlier version."""

    step: int
    starts: tuple[TrainingProcess, ...]

    @classmethod
    def of(cls, content: Mapping[str, Any], path: Path) -> "Held":
        """That of a checkpoint's content.

        Raises:
            CheckpointError: its history is damaged.
        """
        starts = checkpoints.part(dict(content), "history", list[TrainingProcess] | None, path)
        return cls(content["step"], tuple(starts or ()))


@dataclass(frozen=True)
class History:
    """starts: in their order, empty for a run of an earlier version; faults: where file and checkpoints do not fit."""

    starts: tuple[TrainingProcess, ...] = ()
    faults: tuple[str, ...] = ()

    @classmethod
    def compared(cls, run: RunDirectory, held: Mapping[str, Held]) -> "History":
        """That of history.json, compared with those in checkpoints, by their names.

        Raises:
            DataError: the file, or environment.json, is damaged.
        """
        starts = read(run)
        found = starts or max((each.starts for each in held.values()), key=len, default=())
        if not found and run.read_environment().get("code_sha256") == environment.code_sha256():
            return cls(faults=(f"{FILE}: missing, and this code, which trained the run, writes one",))
        return cls(found, tuple(_faults(starts, held)))

    @classmethod
    def of_run(cls, run: RunDirectory, *more: Path) -> "History":
        """That of a run, by history.json and, as far as they are here, the best, the last and more checkpoints.

        Raises:
            UserError: a file is damaged.
        """
        paths = dict.fromkeys([run.checkpoint("best"), run.checkpoint("last"), *more])
        found: dict[tuple[int, int], Path] = {}
        for path in filter(Path.is_file, paths):
            about = path.stat()
            found.setdefault((about.st_dev, about.st_ino), path)  # two names of one file are read once
        held = {
            path.name if path.parent == run.checkpoints else str(path): Held.of(checkpoints.read(path), path)
            for path in found.values()
        }
        return cls.compared(run, held)

    def gaps(self) -> Iterator[str]:
        """What is not known of the training: a history that there is has to begin with new weights."""
        if self.starts and (first := self.starts[0]).resumed_from is not None:
            yield f"{FILE}: begins at step {first.step}, and does not say what trained the steps before"


def write(run: RunDirectory, starts: Sequence[TrainingProcess]) -> None:
    """Write history.json, whole or not at all."""
    files.write_json(run.history_file, plain(starts))


def read(run: RunDirectory) -> tuple[TrainingProcess, ...]:
    """What history.json says; empty where there is none.

    Raises:
        DataError: it is damaged.
    """
    if not run.history_file.is_file():
        return ()
    return tuple(files.read_json(run.history_file, list[TrainingProcess]))


def is_of(run: RunDirectory, starts: Sequence[TrainingProcess]) -> bool:
    """Whether what a run has logged, up to where the last of `starts` goes on, is of the training that they tell of."""
    *before, this = starts
    found = list(read(run))
    same, others = found[: len(before)], found[len(before) :]
    return same == before and all(start.step >= this.step for start in others)


def plain(starts: Sequence[TrainingProcess]) -> list[dict[str, Any]]:
    """As plain types."""
    return [asdict(start) for start in starts]


def _faults(starts: tuple[TrainingProcess, ...], held: Mapping[str, Held]) -> Iterator[str]:
    for name, (step, of_checkpoint) in held.items():
        if of_checkpoint and not starts:
            yield f"{FILE}: missing, and {name} has a history"
        elif starts and not of_checkpoint:
            by_an_earlier_version = starts[0].resumed_from is not None and step <= starts[0].step
            if not by_an_earlier_version:
                yield f"{FILE}: says what trained {name}, and {name} has no history"
        elif starts[: len(of_checkpoint)] != of_checkpoint:
            yield f"{FILE}: is not the history in {name}"
