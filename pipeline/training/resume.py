"""The checkpoint from which a run goes on, and the settings that may have changed since."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common import console, files
from pipeline.common.errors import CheckpointError, ConfigError, name_some
from pipeline.config import load
from pipeline.config.key_effects import effect_of
from pipeline.config.schema import Config
from pipeline.distributed.process_group import Ranks
from pipeline.runs import checkpoints, environment
from pipeline.runs import history as histories
from pipeline.runs.checkpoints import check_data, read
from pipeline.runs.directory import RunDirectory
from pipeline.runs.history import Held, TrainingProcess
from pipeline.runs.status import Hold
from pipeline.training.state import Best

# What other verbs, and this process's lock, leave in the folder of a run that has not begun.
BEFORE_A_RUN = ("status.lock", "lr_find", "probe", "lock", "output.log", "study.json")


def checkpoint_to_resume(
    config: Config, classes: list[str], samples: str
) -> tuple[Path, dict[str, Any]] | None:
    """The path and content of the checkpoint that `train.resume` asks for, or None for a fresh start.

    Args:
        classes, samples: names and digest of the sample table that the run trains on.

    Raises:
        CheckpointError: it is missing, damaged, or of other data or another configuration.
    """
    start = requested(config)
    path = _own_checkpoint(RunDirectory(config.run_dir)) if start == "auto" else Path(start)
    if start == "never" or path is None:
        return None
    if not path.is_file():
        raise CheckpointError(
            f"train.resume={start}: no such file; give auto, never or the path of a checkpoint"
        )
    content = read(path)
    check_data(content, path, classes, samples)
    changed = _changed(config, content)
    forcible = {key for key in changed if effect_of(key).on_resume == "forced"}
    refused = [key for key in changed if not (config.train.resume_force and key in forcible)]
    if refused:
        can_force = not config.train.resume_force and forcible.issuperset(refused)
        force = "train.resume_force=true, which goes on with these, " if can_force else ""
        raise CheckpointError(
            f"{path}: was trained with another configuration ({', '.join(changed[key] for key in refused)}); take the "
            f"same one, {force}another run.name, or train.resume=never, which puts the earlier run aside"
        )
    if changed:
        console.warn(f"{path}: going on with another configuration ({', '.join(changed.values())})")
    return path, content


def _own_checkpoint(run: RunDirectory) -> Path | None:
    """The last checkpoint of a run; where it is missing, the best one; None for a run that has not saved any.

    Raises:
        CheckpointError: it is missing from a run that has finished, or that test was predicted with.
    """
    last, best = run.checkpoint("last"), run.checkpoint("best")
    if last.is_file():
        return last
    status = run.read_status()
    if (status is not None and status.state == "finished") or run.test_readings_file.is_file():
        raise CheckpointError(
            f"{last}: missing, and {run.path} was finished or evaluated; bring it back, go on from another one with "
            "train.resume=PATH, put the run aside with train.resume=never, or take another run.name"
        )
    if not best.is_file():
        return None
    console.warn(f"{last}: missing; going on from {best.name}")
    return best


def _changed(config: Config, content: Mapping[str, Any]) -> dict[str, str]:
    """The keys that have another value than in a checkpoint and do not go on by themselves, each in words."""
    differences = load.differences(load.completed(content["config"]), config.model_dump(mode="json"))
    return {
        key: f"{key} {before} -> {now}"
        for key, before, now in differences
        if effect_of(key).on_resume != "free"
    }


def history(
    config: Config, checkpoint: tuple[Path, dict[str, Any]] | None, ranks: Ranks
) -> tuple[TrainingProcess, ...]:
    """The processes that trained the weights up to a checkpoint (`checkpoint_to_resume`), and this one.

    Raises:
        CheckpointError: the history in the checkpoint is damaged.
        DataError: history.json is.
    """
    path, content = checkpoint or (None, None)
    before = Held(0, ()) if path is None or content is None else Held.of(content, path)
    this = TrainingProcess(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        step=before.step,
        code_sha256=environment.code_sha256(),
        configuration=config.model_dump(mode="json"),
        resumed_from=None if path is None else str(path),
        forced=[] if content is None else sorted(_changed(config, content)),
        computed_on={**environment.computed_on(ranks.device), "ranks": ranks.world_size},
    )
    run = RunDirectory(config.run_dir)
    adopted = _adopted(run, before) if path is not None and elsewhere(run, [this]) is None else ()
    return (*before.starts, *adopted, this)


def _adopted(run: RunDirectory, last: Held) -> tuple[TrainingProcess, ...]:
    """The process that made the checkpoint of a run its last one (`adopt`), where it saved nothing after that."""
    found, count = histories.read(run), len(last.starts)
    next_one = found[count : count + 1]
    is_it = found[:count] == last.starts and next_one and next_one[0].step == last.step
    return next_one if is_it and elsewhere(run, next_one) is not None else ()


def elsewhere(run: RunDirectory, history: Sequence[TrainingProcess]) -> Path | None:
    """The checkpoint that a run goes on from, where that is not its own last one."""
    path = history[-1].resumed_from
    is_own = path is None or Path(path).resolve() == run.checkpoint("last").resolve()
    return None if is_own else Path(str(path))


def adopt(run: RunDirectory, starts: Sequence[TrainingProcess], best: Best | None) -> Best | None:
    """Make a checkpoint from `elsewhere` the last one of a run, and the best of that training the run's best one.

    What an abandoned training has left in the run, later checkpoints, another best one, and a log that is not of the
    training that goes on, is moved to checkpoints/abandoned.

    Args:
        starts: the processes that trained the checkpoint, and this one (`history`).
        best: the best epoch of its training until then.

    Returns:
        The best epoch so far; None, with a warning, where its checkpoint does not lie beside it.
    """
    path, step = Path(str(starts[-1].resumed_from)), starts[-1].step
    last, kept = run.checkpoint("last"), run.checkpoint("best")
    source = _file_of_best(path, best, step)
    if best is not None and source is None:
        console.warn(
            f"{path}: the checkpoint of its best epoch, {best.epoch}, is not beside it; the best is chosen anew"
        )
    new = {last: path.resolve()}
    if source is not None and source.resolve() != kept.resolve():
        new[kept] = source.resolve()
    later = [old for old in run.checkpoints.glob("step-*.pt") if _step_of(old) > step]
    stays = {path.resolve(), *([] if source is None else [source.resolve()])}
    with ExitStack() as whole:  # best.pt appears, then last.pt; until then the run is as it was
        for name, content in new.items():
            files.link_or_copy(content, whole.enter_context(files.replacing(name)))
        for old in (last, kept, *later):
            if old.is_file() and old.resolve() not in stays:
                _abandon(run, old, is_replaced=old in new)
        if run.log_file.is_file() and not histories.is_of(run, starts):
            _abandon(run, run.log_file)
    return None if source is None else best


def _step_of(checkpoint: Path) -> int:
    """The step in the name of a step-NNNNNNN.pt; -1 for another name."""
    number = checkpoint.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def _file_of_best(path: Path, best: Best | None, step: int) -> Path | None:
    """The checkpoint of the best epoch of a training: the one at `path`, or best.pt or that of its step beside it."""
    if best is None or best.step == step:
        return None if best is None else path
    beside = RunDirectory(path.parent.parent)
    for candidate in (
        path.with_name(beside.checkpoint("best").name),
        path.with_name(f"step-{best.step:07}.pt"),
    ):
        try:
            content = checkpoints.read(candidate) if candidate.is_file() else None
        except CheckpointError as error:
            console.warn(str(error))
            continue
        if content is not None and content["step"] == best.step and content["best"] == vars(best):
            return candidate
    return None


def _abandon(run: RunDirectory, file: Path, *, is_replaced: bool = False) -> None:
    """Move a file to checkpoints/abandoned; one that is about to be replaced gets a second name there."""
    folder = run.checkpoints / "abandoned"
    folder.mkdir(exist_ok=True)
    number = 1
    while (aside := folder / f"{file.stem}.{number}{file.suffix}").exists():
        number += 1
    if is_replaced:
        checkpoints.link(file, aside)
    else:
        file.rename(aside)
    console.say(f"abandoned  {file.name} of a training that this one does not go on from is now {aside}")


def requested(config: Config) -> str:
    """`train.resume`; auto where torchrun or Slurm has restarted a run that has a checkpoint, and that of a path.

    Raises:
        DataError: history.json is damaged.
    """
    asked, run = config.train.resume, RunDirectory(config.run_dir)
    restarted = any(
        int(os.environ.get(name, "0")) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )
    if not restarted or not run.checkpoint("last").is_file():
        return asked
    is_done = asked in ("auto", "never") or any(
        start.resumed_from == str(Path(asked)) for start in histories.read(run)
    )
    return "auto" if is_done else asked


def put_aside(run: RunDirectory, hold: Hold) -> None:
    """Rename an earlier run's folder to NAME.1, NAME.2, ...; nothing is deleted.

    Args:
        hold: of this process on the run.

    Raises:
        ConfigError: the folder holds other files, and no run.
    """
    if not (run.status_file.is_file() or run.is_run()):
        known = (run.schedule_file.name, *BEFORE_A_RUN)
        if foreign := sorted(path.name for path in run.path.iterdir() if path.name not in known):
            raise ConfigError(
                f"run.name: {run.path} holds other files ({name_some(foreign)}) and no run that could be put aside; "
                "take another run.name or run.root"
            )
        return
    number = 1
    while (aside := run.path.with_name(f"{run.path.name}.{number}")).exists():
        number += 1
    hold.move_run(aside)
    console.say(f"put aside  {run.path} is now {aside}")
