"""The `wandb` client, told to send what it is given and nothing else; its errors become sentences."""

import importlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.wandb_sync.rows import Row
from pipeline.wandb_sync.tracked_run import TrackedRun

INIT_WAIT_S = 30.0
STATES = {"finished": 0, "stopped": 1, "failed": 1, "killed": 1}  # exit codes; W&B's state follows from them
WandbRun = Any  # wandb.Run; the module is imported only when something is sent


class Refused(UserError):
    """W&B does not take the run: no key, or not this one."""


class Unreachable(UserError):
    """W&B does not answer, or not in time."""


@contextmanager
def folders(root: Path) -> Iterator[None]:
    """Keep everything that the client writes on the way in one folder, and nothing in the home directory."""
    root.mkdir(parents=True, exist_ok=True)
    names = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(root.resolve())))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def begin(place: TrackedRun, folder: Path, *, offline: bool = False, watched: int | None = None) -> WandbRun:
    """Open the W&B run of a run directory, new or where it stood.

    Args:
        folder: for the client's own files.
        offline: write the run into a W&B offline directory below `folder` instead of sending it.
        watched: id of the process whose use of the machine is sent, or None.

    Raises:
        Refused: there is no key, or W&B does not accept it.
        Unreachable: W&B does not answer.
    """
    wandb = _module(place)
    tracking, known = place.config.tracking, place.known()
    settings = wandb.Settings(
        console="off",  # no output, code, git state, packages or machine of this process: the run's own are in config
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_machine_info=watched is None,  # it would switch off the use of the machine, too
        x_save_requirements=False,
        x_disable_stats=watched is None,
        x_stats_pid=watched or os.getpid(),
        x_stats_track_process_tree=True,
        x_update_finish_state=place.state() != "running" or watched is not None,
        init_timeout=max(min(INIT_WAIT_S, tracking.upload_wait_s / 3), 1.0),  # a follower tries again
        finish_timeout=max(tracking.upload_wait_s, 1.0),  # 0 would be for ever
        finish_timeout_raises=True,
        silent=True,
        reinit="create_new",
    )
    with sentences(place):
        run = wandb.init(
            mode="offline" if offline else "online",
            project=known["project"],
            entity=known["entity"],
            id=known["id"],
            resume="allow",
            name=tracking.name or place.run_dir.name,
            group=tracking.group,
            tags=list(tracking.tags),
            notes=tracking.notes,
            dir=folder,
            config={**place.config.model_dump(mode="json"), "environment": place.environment()},
            settings=settings,
        )
    for kind in ("epoch", "val"):
        run.define_metric(f"{kind}/epoch", hidden=True)
        run.define_metric(f"{kind}/*", step_metric=f"{kind}/epoch")
    return run


def send(run: WandbRun, rows: Iterable[Row], after: int) -> int:
    """Log the rows of steps larger than `after`, each at once; return the last step there is now."""
    for row in rows:
        if row.step > after:
            values = {key: _value(value) for key, value in row.values.items()}
            run.log(values, step=row.step, commit=True)
            after = row.step
    return after


def mark_synced(folder: Path) -> None:
    """Say of an offline folder, as `wandb sync` does and reads it, that W&B has all of it: it would be sent twice."""
    for path in folder.glob("*.wandb"):
        path.with_name(path.name + ".synced").touch()


def is_synced(folder: Path) -> bool:
    """Whether `wandb sync` has sent an offline folder."""
    return any(folder.glob("*.wandb.synced"))


def end(run: WandbRun, place: TrackedRun, state: str) -> None:
    """Wait until everything is sent, at most `tracking.upload_wait_s`, and say how the run stands.

    Raises:
        Unreachable: not everything was taken in that time.
    """
    if state == "stopped":
        run.mark_preempting()
    with sentences(place):
        run.finish(exit_code=STATES.get(state, 0))


@contextmanager
def sentences(place: TrackedRun) -> Iterator[None]:
    """What the client raises about its key, its server and time becomes one sentence."""
    wandb = _module(place)
    from wandb.sdk.artifacts.exceptions import WaitTimeoutError
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    again = f"`python -m pipeline sync {place.run_dir}`"
    where = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        yield
    except wandb.errors.UsageError as error:
        if "key" not in str(error).lower():
            raise
        raise Refused(
            f"W&B: there is no API key; set WANDB_API_KEY (https://wandb.ai/authorize), then {again} sends the run"
        ) from error
    except (wandb.errors.AuthenticationError, wandb.errors.CommError, WandbApiFailedError) as error:
        said = " ".join(str(error).split())[:300]
        if re.search(r"\b40[0134]\b", said) or isinstance(error, wandb.errors.AuthenticationError):
            raise Refused(
                f"W&B: {where} refuses the run ({said}); check WANDB_API_KEY, tracking.entity and tracking.project, "
                f"then {again} sends it"
            ) from error
        raise Unreachable(
            f"W&B: {where} does not answer ({said}); nothing is lost, {again} sends the run later"
        ) from error
    except (TimeoutError, WaitTimeoutError) as error:
        waited = place.config.tracking.upload_wait_s
        raise Unreachable(
            f"W&B: {where} has not taken everything in {waited:g} s (tracking.upload_wait_s); nothing is lost, "
            f"{again} sends the rest"
        ) from error


def _module(place: TrackedRun) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
        import wandb.errors
    except ImportError as error:
        raise Refused(
            f"W&B: the package wandb cannot be imported ({error}); `pip install wandb`, then "
            f"`python -m pipeline sync {place.run_dir}` sends the run"
        ) from error
    logging.getLogger("wandb").setLevel(logging.ERROR)
    return wandb


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return importlib.import_module("wandb").Histogram(np_histogram=(value["counts"], value["edges"]))
    return value
