"""Sends a run directory as one W&B run: after its end, while it is written, or as a folder for `wandb sync`."""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common import console
from pipeline.common.errors import UserError, refusals_as_sentences
from pipeline.wandb_sync import client
from pipeline.wandb_sync.artifacts import Artifacts
from pipeline.wandb_sync.client import Refused, TooSlow, Unreachable, WandbRun
from pipeline.wandb_sync.rows import Row, best, build_rows, extremes
from pipeline.wandb_sync.tracked_run import Standing, TrackedRun

POLL_S = 1.0
READING_SHARE = 0.01  # largest share of its time that a follower spends on reading the log
RETRY_S = 20.0
EXIT_S = 10.0


def sync_runs(run_dirs: Sequence[Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Complete the W&B run of each run directory; return what was sent.

    Raises:
        UserError: some runs could not be sent; a warning gives the reason for each. The others were sent, but for those
            that were not tried, because W&B refuses the key or does not answer; the sentence names them all.
    """
    return {"runs": _each(run_dirs, overrides, _complete, "sent to W&B")}


def write_offline_runs(run_dirs: Sequence[Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Write each run as a W&B offline folder, which `wandb sync` sends; it replaces an earlier folder of the run.

    Raises:
        UserError: some runs could not be written; a warning gives the reason for each. The others were written, but for
            those that were not tried, because the client is missing; the sentence names them all.
    """
    return {"runs": _each(run_dirs, overrides, _write_offline, "written for W&B")}


def _each(
    run_dirs: Sequence[Path],
    overrides: Sequence[str],
    do: Callable[[TrackedRun], dict[str, Any]],
    done: str,
) -> list[dict[str, Any]]:
    """Do something with each run; one that is damaged or slow does not keep the others from it.

    Args:
        done: what is then said of a run, such as "sent to W&B".
    """
    results: list[dict[str, Any]] = []
    failed: list[Path] = []
    for number, run_dir in enumerate(run_dirs, start=1):
        try:
            with refusals_as_sentences():
                results.append(do(TrackedRun.open(run_dir, overrides)))
        except UserError as error:
            if len(run_dirs) == 1:
                raise
            failed.append(run_dir)
            if isinstance(error, (Refused, Unreachable)):  # so it would be with each other run
                account = _account(done, results, failed, run_dirs[number:])
                raise type(error)(f"{error}; {account}") from error
            console.warn(str(error))
    if failed:
        raise UserError(_account(done, results, failed, ()))
    return results


def _account(
    done: str, results: Sequence[dict[str, Any]], failed: Sequence[Path], untried: Sequence[Path]
) -> str:
    """What became of each run: `not sent to W&B: A; not tried: B; of the others 1 were: C`."""
    parts = [f"not {done}: {', '.join(map(str, failed))}"]
    if untried:
        parts.append(f"not tried: {', '.join(map(str, untried))}")
    names = [result["run"] for result in results]
    return "; ".join(
        [*parts, f"of the others {len(names)} were" + (f": {', '.join(names)}" if names else "")]
    )


def follow(run_dir: Path, trainer: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Send a run while its training process, the parent of this one, writes it; complete it when training ends.

    Signals are ignored here. This process ends `tracking.upload_wait_s` after the training at the latest.

    Args:
        trainer: id of the training process.

    Raises:
        UserError: there is no key, or W&B did not accept everything in time.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    tracked = TrackedRun.open(run_dir, overrides)

    def training() -> bool:
        status = tracked.standing().status
        ended = status is not None and status.pid == trainer and status.state != "running"
        return os.getppid() == trainer and not ended

    def end_in_time() -> None:
        while training():
            time.sleep(POLL_S)
        time.sleep(max(tracked.config.tracking.upload_wait_s, 1.0) + EXIT_S)
        os._exit(UserError.exit_code)  # the client may wait for the server for hours

    threading.Thread(target=end_in_time, daemon=True).start()
    wait_s = (
        tracked.config.tracking.upload_wait_s + EXIT_S
    )  # the sender of an earlier attempt may need so long
    with tracked.locked(wait_s), _client_folder() as folder:
        run = _begin_patiently(tracked, folder, trainer, training)
        before = sent = run.starting_step - 1
        while training():
            began = time.monotonic()
            sent = client.send(run, tracked, build_rows(tracked.records(), is_over=False), sent)
            took = time.monotonic() - began
            time.sleep(max(POLL_S, took / READING_SHARE))
        standing = tracked.standing()
        return _finish(tracked, run, standing, before, sent, hurried=standing.state == "stopped")


def _begin_patiently(
    tracked: TrackedRun, folder: Path, watched: int, training: Callable[[], bool]
) -> WandbRun:
    """Open the W&B run as soon as W&B answers; after the end of training, make one last attempt."""
    while True:
        last = not training()
        try:
            return client.begin(tracked, folder, watched=watched)
        except (Unreachable, TooSlow):
            if last:
                raise
        retry_at = time.monotonic() + RETRY_S
        while training() and time.monotonic() < retry_at:
            time.sleep(POLL_S)


def _complete(tracked: TrackedRun) -> dict[str, Any]:
    with tracked.locked(), _client_folder() as folder:
        run = client.begin(tracked, folder)
        before, standing = run.starting_step - 1, tracked.standing()
        return _finish(tracked, run, standing, before, before, hurried=standing.state == "running")


def _finish(
    tracked: TrackedRun, run: WandbRun, standing: Standing, before: int, sent: int, *, hurried: bool
) -> dict[str, Any]:
    """Send the rest of a run, and its state.

    Args:
        standing: of the run, read before its log is read for the last time.
        before: last step that W&B had before this process began.
        sent: last step that this process has sent.
        hurried: leave out evaluations and artifacts, because the run goes on.
    """
    rows = build_rows(tracked.records(), standing.is_over)
    artifacts = Artifacts(tracked, run, offline=False)
    left_out = ["evaluations and artifacts: the run goes on"]
    try:
        client.send(run, tracked, rows, sent)
        alert = _send_alert(tracked, run, standing)
        if not hurried:
            with client.errors_as_sentences(tracked):
                left_out = _publish(tracked, run, artifacts)
    finally:
        client.end(run, tracked, standing.state)
    alerts = [*tracked.identity().alerts, *([alert] if alert else [])]
    tracked.note(alerts=alerts, sent=max(before, _last_step(rows)))
    for folder in tracked.offline_folders():
        client.mark_synced(folder)
    return {
        "run": str(tracked.run_dir),
        "id": run.id,
        "url": run.url,
        "state": standing.state,
        "rows_sent": sum(row.step > before for row in rows),
        "rows_there": sum(row.step <= before for row in rows),
        "artifacts": artifacts.sent,
        "left_out": left_out,
    }


def _write_offline(tracked: TrackedRun) -> dict[str, Any]:
    """Write the W&B offline folder of a run, with the steps that W&B is not known to have; delete earlier folders.

    `wandb sync` appends to the W&B run, so the new folder must not repeat steps that an earlier one has sent.
    """
    with tracked.locked():
        identity, folders = tracked.identity(), tracked.offline_folders()
        sent = max(identity.sent, identity.offline if any(map(client.is_synced, folders)) else 0)
        outdated = [*folders, *tracked.directory.wandb.glob("files-*")]
        # pictures of tables stay in this folder until they are sent
        with client.folders(tracked.directory.wandb / f"files-{time.time_ns()}"):
            run = client.begin(tracked, tracked.run_dir, offline=True)
            artifacts = Artifacts(tracked, run, offline=True)
            standing = tracked.standing()
            rows = build_rows(tracked.records(), standing.is_over)
            client.send(run, tracked, rows, sent)
            left_out = _publish(tracked, run, artifacts)
            folder = Path(run.dir).parent
            client.end(run, tracked, standing.state)
        for path in outdated:
            shutil.rmtree(path)
        tracked.note(sent=sent, offline=max(sent, _last_step(rows)))
    return {
        "run": str(tracked.run_dir),
        "id": run.id,
        "folder": str(folder),
        "state": standing.state,
        "rows": sum(row.step > sent for row in rows),
        "rows_there": sum(row.step <= sent for row in rows),
        "artifacts": artifacts.sent,
        "left_out": left_out,
    }


@contextmanager
def _client_folder() -> Iterator[Path]:
    """A temporary folder for the client's own files."""
    with tempfile.TemporaryDirectory() as folder, client.folders(Path(folder)):
        yield Path(folder)


def _last_step(rows: Sequence[Row]) -> int:
    return rows[-1].step if rows else 0


def _publish(tracked: TrackedRun, run: WandbRun, artifacts: Artifacts) -> list[str]:
    """Send summary, artifacts and the tables of the evaluations; return the reasons for what is left out."""
    log, diff = tracked.records(), tracked.directory.diff_file
    run.summary.update({**best(log), **extremes(log)})
    if diff.is_file():
        run.save(str(diff), base_path=str(tracked.run_dir), policy="now")
    left_out = [reason for reason in (artifacts.data(), artifacts.checkpoint()) if reason]
    for evaluation in tracked.evaluations():
        from pipeline.wandb_sync.tables import evaluation_tables  # imports torch

        artifacts.evaluation(evaluation, evaluation_tables(tracked, evaluation))
        run.summary.update(evaluation.summary())
    return left_out


def _send_alert(tracked: TrackedRun, run: WandbRun, standing: Standing) -> str | None:
    """Send an alert, once, when an attempt failed or was killed; return the name of the alert, or None."""
    status, state = standing.status, standing.state
    if status is None or state not in ("failed", "killed"):
        return None
    name = f"{state} in attempt {status.attempts}"
    if name in tracked.identity().alerts:
        return None
    failure = "its loss diverged" if standing.diverged else "it failed"
    ending = failure if state == "failed" else "its process died"
    text = (
        status.why
        or f"Process {status.pid} on {status.host} is gone without a word: killed, or out of memory."
    )
    run.alert(f"{run.name}: {ending}"[:63], text, level="ERROR")
    return name
