"""A run directory becomes one W&B run: at once, while it is being written, or as a folder for `wandb sync`."""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.common import console
from pipeline.common.errors import UserError
from pipeline.wandb_sync import client
from pipeline.wandb_sync.artifacts import Artifacts
from pipeline.wandb_sync.client import Refused, Unreachable, WandbRun
from pipeline.wandb_sync.rows import Row, best, extremes, rows
from pipeline.wandb_sync.tracked_run import TrackedRun, evaluations

POLL_S = 1.0
READING_SHARE = 0.01  # of the time, at most, in which a follower reads the log again
RETRY_S = 20.0
EXIT_S = 10.0


def sync(run_dirs: Sequence[Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Complete the W&B run of each run directory, and say what was sent.

    Raises:
        UserError: runs that could not be sent, each with its sentence; the others were.
    """
    done, failed = [], []
    for run_dir in run_dirs:
        try:
            done.append(_complete(TrackedRun.of(run_dir, overrides)))
        except (Refused, Unreachable):
            raise
        except UserError as error:
            if len(run_dirs) == 1:
                raise
            console.warn(str(error))
            failed.append(str(run_dir))
    if failed:
        raise UserError(f"not sent to W&B: {', '.join(failed)}; of the others {len(done)} were")
    return {"runs": done}


def offline(run_dirs: Sequence[Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Write each run into RUN/wandb/offline-run-..., from which `wandb sync` sends it; an earlier one is replaced.

    Raises:
        UserError: there is no such run, or its log is damaged.
    """
    return {"runs": [_write(TrackedRun.of(run_dir, overrides)) for run_dir in run_dirs]}


def follow(run_dir: Path, trainer: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Send a run while the process that called this one trains it, and complete it when that ends.

    Signals are for the training; this process ends by itself, `tracking.upload_wait_s` after it at the latest.

    Args:
        trainer: id of the process that called this one.

    Raises:
        UserError: there is no key, or W&B did not take everything in time.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    place = TrackedRun.of(run_dir, overrides)

    def training() -> bool:
        found = place.status()
        ended = found is not None and found.pid == trainer and found.state != "running"
        return os.getppid() == trainer and not ended

    def end_in_time() -> None:
        while training():
            time.sleep(POLL_S)
        time.sleep(max(place.config.tracking.upload_wait_s, 1.0) + EXIT_S)
        os._exit(UserError.exit_code)  # the client may wait for the server for hours

    threading.Thread(target=end_in_time, daemon=True).start()
    before_s = place.config.tracking.upload_wait_s + EXIT_S  # an earlier attempt may still send so long
    with place.alone(before_s), tempfile.TemporaryDirectory() as own, client.folders(Path(own)):
        run = _begin_patiently(place, Path(own), trainer, training)
        there = sent = run.starting_step - 1
        while training():
            began = time.monotonic()
            sent = client.send(run, rows(place.records(), over=False), sent)
            took = time.monotonic() - began
            time.sleep(max(POLL_S, took / READING_SHARE))
        return _finish(place, run, there, sent, hurried=place.state() == "stopped")


def _begin_patiently(place: TrackedRun, folder: Path, watched: int, training: Callable[[], bool]) -> WandbRun:
    """Open the run as soon as W&B answers; once training has ended, one last attempt."""
    while True:
        last = not training()
        try:
            return client.begin(place, folder, watched=watched)
        except Unreachable:
            if last:
                raise
        retry_at = time.monotonic() + RETRY_S
        while training() and time.monotonic() < retry_at:
            time.sleep(POLL_S)


def _complete(place: TrackedRun) -> dict[str, Any]:
    with place.alone(), tempfile.TemporaryDirectory() as own, client.folders(Path(own)):
        run = client.begin(place, Path(own))
        there = run.starting_step - 1
        return _finish(place, run, there, there, hurried=place.state() == "running")


def _finish(place: TrackedRun, run: WandbRun, there: int, sent: int, *, hurried: bool) -> dict[str, Any]:
    """Send what is left of a run, then how it stands.

    Args:
        there: last step that W&B had before this process; sent: last step that it has been given.
        hurried: leave out evaluations and artifacts, because the run goes on.
    """
    state, found = place.state(), rows(place.records(), place.over())
    artifacts = Artifacts(place, run, offline=False)
    left_out = ["evaluations and artifacts: the run goes on"]
    try:
        client.send(run, found, sent)
        alert = _alert(place, run, state)
        if not hurried:
            with client.sentences(place):
                left_out = _publish(place, run, artifacts)
    finally:
        client.end(run, place, state)
    place.note(alerts=[*place.known()["alerts"], *([alert] if alert else [])], sent=max(there, _last(found)))
    for folder in place.offline_folders():
        client.mark_synced(folder)
    return {
        "run": str(place.run_dir),
        "id": run.id,
        "url": run.url,
        "state": state,
        "rows_sent": sum(row.step > there for row in found),
        "rows_there": sum(row.step <= there for row in found),
        "artifacts": artifacts.sent,
        "left_out": left_out,
    }


def _write(place: TrackedRun) -> dict[str, Any]:
    """Write the W&B offline folder of a run, of the steps that W&B is not known to have; earlier ones go then.

    `wandb sync` appends: what it has sent before, of an earlier folder, must not stand in this one.
    """
    with place.alone():
        known, before = place.known(), place.offline_folders()
        sent = max(known["sent"], known["offline"] if any(map(client.is_synced, before)) else 0)
        older = [*before, *place.folder.glob("files-*")]
        own = place.folder / f"files-{time.time_ns()}"  # pictures of tables lie here until they are sent
        with client.folders(own):
            run = client.begin(place, place.run_dir, offline=True)
            artifacts = Artifacts(place, run, offline=True)
            state, found = place.state(), rows(place.records(), place.over())
            client.send(run, found, sent)
            left_out = _publish(place, run, artifacts)
            folder = Path(run.dir).parent
            client.end(run, place, state)
        for path in older:
            shutil.rmtree(path)
        place.note(sent=sent, offline=max(sent, _last(found)))
    return {
        "run": str(place.run_dir),
        "id": run.id,
        "folder": str(folder),
        "state": state,
        "rows": sum(row.step > sent for row in found),
        "rows_there": sum(row.step <= sent for row in found),
        "artifacts": artifacts.sent,
        "left_out": left_out,
    }


def _last(found: Sequence[Row]) -> int:
    return found[-1].step if found else 0


def _publish(place: TrackedRun, run: WandbRun, artifacts: Artifacts) -> list[str]:
    """Summary, artifacts and the tables of the evaluations; what is left out, and why."""
    found = place.records()
    run.summary.update({**best(found), **extremes(found)})
    patch = place.run_dir / "diff.patch"
    if patch.is_file():
        run.save(str(patch), base_path=str(place.run_dir), policy="now")
    left_out = [reason for reason in (artifacts.data(), artifacts.checkpoint()) if reason]
    for evaluation in evaluations(place):
        from pipeline.wandb_sync.tables import evaluation_tables  # imports torch

        shown = evaluation_tables(place, evaluation)
        artifacts.evaluation(evaluation, shown)
        run.summary.update(evaluation.summary())
    return left_out


def _alert(place: TrackedRun, run: WandbRun, state: str) -> str | None:
    """Tell the user's W&B, once, that an attempt failed or died; the name by which that is remembered."""
    found = place.status()
    if found is None or state not in ("failed", "killed"):
        return None
    name = f"{state} in attempt {found.attempts}"
    if name in place.known()["alerts"]:
        return None
    ended = (
        "its loss diverged" if place.diverged() else "it failed" if state == "failed" else "its process died"
    )
    text = (
        found.why or f"Process {found.pid} on {found.host} is gone without a word: killed, or out of memory."
    )
    run.alert(f"{run.name}: {ended}"[:63], text, level="ERROR")
    return name
