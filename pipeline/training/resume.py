"""The checkpoint from which a run goes on, and the settings that may have changed since."""

import os
from pathlib import Path
from typing import Any

from pipeline.common import console
from pipeline.common.errors import CheckpointError, ConfigError, name_some
from pipeline.config import load
from pipeline.config.key_effects import effect_of
from pipeline.config.schema import Config
from pipeline.runs.checkpoints import check_data, read
from pipeline.runs.directory import RunDirectory
from pipeline.runs.status import Hold

# What other verbs, and this process's lock, leave in the folder of a run that has not begun.
BEFORE_A_RUN = ("status.lock", "lr_find", "probe", "lock", "output.log", "study.json")


def start_from(config: Config, classes: list[str], samples: str) -> tuple[Path, dict[str, Any]] | None:
    """The path and content of the checkpoint that `train.resume` asks for, or None for a fresh start.

    Args:
        classes, samples: names and digest of the sample table that the run trains on.

    Raises:
        CheckpointError: it is missing, damaged, or of other data or another configuration.
    """
    start, last = requested(config), RunDirectory(config.run_dir).checkpoint("last")
    if start == "never" or (start == "auto" and not last.is_file()):
        return None
    path = last if start == "auto" else Path(start)
    content = read(path)
    check_data(content, path, classes, samples)
    differences = load.differences(load.completed(content["config"]), config.model_dump(mode="json"))
    changed = {
        key: f"{key} {before} -> {now}"
        for key, before, now in differences
        if effect_of(key).on_resume != "free"
    }
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


def requested(config: Config) -> str:
    """`train.resume`; auto where torchrun or Slurm has restarted a run that has a checkpoint."""
    restarted = any(
        int(os.environ.get(name, "0")) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )
    has_checkpoint = RunDirectory(config.run_dir).checkpoint("last").is_file()
    return "auto" if restarted and has_checkpoint else config.train.resume


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
