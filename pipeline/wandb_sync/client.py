"""The `wandb` client, set to send what it is given and nothing else; its errors become sentences."""

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
    """W&B does not accept the run: the key is missing, or refused."""


class Unreachable(UserError):
    """W&B does not answer."""


class TooSlow(UserError):
    """W&B has not taken all of a run in time; it may well take another run."""


@contextmanager
def folders(root: Path) -> Iterator[None]:
    """Make the client keep its files in one folder, and nothing in the home directory, while the block runs."""
    root.mkdir(parents=True, exist_ok=True)
    names = ["WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"]
    if os.path.expanduser("~") == "~":  # noqa: PTH111  # a user id without a name, without HOME: the client gives up
        names.append("HOME")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(root.resolve())))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def begin(
    tracked: TrackedRun, folder: Path, *, offline: bool = False, watched: int | None = None
) -> WandbRun:
    """Open the W&B run of a run directory: a new one, or the one that earlier processes sent to.

    Args:
        folder: for the client's own files.
        offline: write the run into a W&B offline directory below `folder` instead of sending it.
        watched: id of the process whose CPU, memory and GPU use is sent, or None.

    Raises:
        Refused: there is no key, or W&B does not accept it.
        Unreachable: W&B does not answer.
        TooSlow: it answers, and is not ready in time.
    """
    wandb = import_wandb(tracked)
    tracking, identity = tracked.config.tracking, tracked.identity()
    with errors_as_sentences(tracked):
        run = wandb.init(
            mode="offline" if offline else "online",
            project=identity.project,
            entity=identity.entity,
            id=identity.id,
            resume="allow",
            name=tracking.name or tracked.run_dir.name,
            group=tracking.group,
            tags=list(tracking.tags),
            notes=tracking.notes,
            dir=folder,
            config={
                **tracked.config.model_dump(mode="json"),
                "environment": tracked.directory.read_environment(),
            },
            settings=_settings(tracked, watched),
        )
    for kind in ("epoch", "val"):
        run.define_metric(f"{kind}/epoch", hidden=True)
        run.define_metric(f"{kind}/*", step_metric=f"{kind}/epoch")
    return run


def _settings(tracked: TrackedRun, watched: int | None) -> Any:
    """Settings that send no output, code, git state, packages or machine of this process: config has the run's own."""
    upload_wait_s = tracked.config.tracking.upload_wait_s
    return import_wandb(tracked).Settings(
        console="off",
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_machine_info=watched is None,  # it would switch off the use of the machine, too
        x_save_requirements=False,
        x_disable_stats=watched is None,
        x_stats_pid=watched or os.getpid(),
        x_stats_track_process_tree=True,
        x_update_finish_state=tracked.standing().state != "running" or watched is not None,
        init_timeout=max(min(INIT_WAIT_S, upload_wait_s / 3), 1.0),  # a follower tries again
        finish_timeout=max(upload_wait_s, 1.0),  # 0 would wait for ever
        finish_timeout_raises=True,
        silent=True,
        reinit="create_new",
    )


def send(run: WandbRun, tracked: TrackedRun, rows: Iterable[Row], after: int) -> int:
    """Send the rows of steps larger than `after`, one by one; return the last step that is sent now."""
    wandb = import_wandb(tracked)
    for row in rows:
        if row.step > after:
            values = {
                key: _histogram(wandb, value) if isinstance(value, dict) else value
                for key, value in row.values.items()
            }
            run.log(values, step=row.step, commit=True)
            after = row.step
    return after


def mark_synced(folder: Path) -> None:
    """Mark an offline folder as sent, as `wandb sync` does: otherwise `wandb sync` would send it again."""
    for path in folder.glob("*.wandb"):
        path.with_name(path.name + ".synced").touch()


def is_synced(folder: Path) -> bool:
    """Whether `wandb sync` has sent an offline folder."""
    return any(folder.glob("*.wandb.synced"))


def end(run: WandbRun, tracked: TrackedRun, state: str) -> None:
    """Send the state of the run and wait until everything is sent, at most `tracking.upload_wait_s`.

    Raises:
        Unreachable: W&B does not answer.
        TooSlow: not everything was sent in that time.
    """
    if state == "stopped":
        run.mark_preempting()
    with errors_as_sentences(tracked):
        run.finish(exit_code=STATES.get(state, 0))


@contextmanager
def errors_as_sentences(tracked: TrackedRun) -> Iterator[None]:
    """Raise `Refused`, `Unreachable` or `TooSlow`, in one sentence, for the client's errors of key, server and time."""
    wandb = import_wandb(tracked)
    from wandb.sdk.artifacts.exceptions import WaitTimeoutError
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    again = f"`plumage sync {tracked.run_dir}`"
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        yield
    except wandb.errors.UsageError as error:
        if "key" not in str(error).lower():
            raise
        raise Refused(
            f"W&B: there is no API key; set WANDB_API_KEY (https://wandb.ai/authorize), then {again} sends the run"
        ) from error
    except (wandb.errors.AuthenticationError, wandb.errors.CommError, WandbApiFailedError) as error:
        message = " ".join(str(error).split())[:300]
        if re.search(r"\b40[0134]\b", message) or isinstance(error, wandb.errors.AuthenticationError):
            raise Refused(
                f"W&B: {server} refuses the run ({message}); check WANDB_API_KEY, tracking.entity and tracking.project, "
                f"then {again} sends it"
            ) from error
        raise Unreachable(
            f"W&B: {server} does not answer ({message}); nothing is lost, {again} sends the run later"
        ) from error
    except (TimeoutError, WaitTimeoutError) as error:
        waited = tracked.config.tracking.upload_wait_s
        raise TooSlow(
            f"W&B: {server} has not taken everything in {waited:g} s (tracking.upload_wait_s); nothing is lost, "
            f"{again} sends the rest"
        ) from error


def import_wandb(tracked: TrackedRun) -> Any:
    """The module `wandb`; `Refused` when it cannot be imported."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
        import wandb.errors
    except ImportError as error:
        raise Refused(
            f"W&B: the package wandb cannot be imported ({error}); `pip install wandb`, then "
            f"`plumage sync {tracked.run_dir}` sends the run"
        ) from error
    logging.getLogger("wandb").setLevel(logging.ERROR)
    return wandb


def _histogram(wandb: Any, value: dict[str, Any]) -> Any:
    return wandb.Histogram(np_histogram=(value["counts"], value["edges"]))
