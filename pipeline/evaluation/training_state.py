"""Whether the training of a run is over: an evaluation of one that goes on is of a model that soon is another one."""

import time

from pipeline.common import console
from pipeline.common.errors import CheckpointError
from pipeline.config.schema import Config
from pipeline.runs.directory import RunDirectory
from pipeline.runs.status import Status

POLL_S = 1.0
SAY_AGAIN_S = 60.0  # between two lines of a process that waits


def await_end(config: Config) -> None:
    """Wait until the training is over, if `eval.while_training` says wait; each rank waits by itself.

    The wait ends with the training process, however that ends.
    """
    run, said_at = RunDirectory(config.run_dir), -SAY_AGAIN_S
    while (
        config.eval.while_training == "wait" and (status := run.read_status()) and status.state == "running"
    ):
        if time.monotonic() - said_at >= SAY_AGAIN_S:
            console.say(
                f"waiting for {_process(status)}, which trains {run.path}; stopping this one loses nothing"
            )
            said_at = time.monotonic()
        time.sleep(POLL_S)


def check_is_over(config: Config) -> dict[str, str]:
    """What metrics.json says of a training that has not finished: `training`, its state; else nothing.

    Raises:
        CheckpointError: the training goes on, or has ended before its time and `eval.while_training` says wait.
    """
    run, choice = RunDirectory(config.run_dir), config.eval.while_training
    status = run.read_status()
    if status is None or status.state == "finished":
        return {}
    if status.state == "running" and choice != "evaluate":
        raise CheckpointError(
            f"{run.path}: {_process(status)} is training this run, and its checkpoint will be another one; set "
            "eval.while_training=wait to wait for the end, or =evaluate to take the checkpoint that is there now"
        )
    if choice == "wait":
        raise CheckpointError(
            f"{run.path}: the training has {_ended(status)}; go on with it, or set eval.while_training=evaluate"
        )
    console.warn(_unfinished(run, status))
    return {"training": status.state}


def warn_of_unfinished(run: RunDirectory) -> None:
    """Say it when what is shown of a run belongs to a training that goes on."""
    status = run.read_status()
    if status is not None and status.state == "running":
        console.warn(_unfinished(run, status))


def _unfinished(run: RunDirectory, status: Status) -> str:
    how = f"goes on ({_process(status)})" if status.state == "running" else f"has {_ended(status)}"
    return f"{run.path}: the training {how}; what follows is of a checkpoint before its end"


def _ended(status: Status) -> str:
    """`stopped (SIGTERM)`, `failed (step 3: ...)`, `been killed`."""
    ended = "been killed" if status.state == "killed" else status.state
    return f"{ended} ({status.why})" if status.why else ended


def _process(status: Status) -> str:
    return f"process {status.pid} on {status.host}"
