"""Several ranks prepare the data: one of those that share a disk builds, the others wait for it.

On a shared file system that is the first rank alone; on machines with disks of their own, the first of each.
"""

import secrets
import shutil
import time
from pathlib import Path

from pipeline.common import console
from pipeline.common.errors import DataError, RankLost
from pipeline.config.schema import Config
from pipeline.data import sample_table
from pipeline.data.prepare import load, prepare
from pipeline.distributed import consistency, process_group
from pipeline.distributed.heartbeat import Heartbeat
from pipeline.distributed.process_group import Ranks

BUILT = "data"
POLL_S = 0.2
HEARTBEAT_CHECK_S = 30.0  # between two checks whether the builder is alive


def prepare_distributed(config: Config, verify: bool = False) -> None:
    """Run the data stages that are due, once on every disk; every rank ends with the same sample table.

    Args:
        verify: see `prepare`.

    Raises:
        DataError: anything about the data that the user can mend, or it took longer than
            `distributed.data_timeout_minutes`.
        RankLost: a rank that builds died, or ended with an error.
    """
    on_cpu = config.train.model_copy(update={"device": "cpu"})
    with process_group.join(on_cpu, config.distributed.timeout_s) as ranks:
        assert ranks.heartbeat is not None, "there are several ranks"
        builder_of = builders(config.data.root, ranks)
        if builder_of[ranks.rank] == ranks.rank:
            prepare(config, verify)
            ranks.heartbeat.mark_done(BUILT)
        for rank in sorted(set(builder_of)):
            _wait_for(rank, ranks.heartbeat, config.distributed.data_timeout_minutes)
        consistency.check_ranks_agree(config, sample_table.digest(load(config).samples), ranks)


def builders(folder: Path, ranks: Ranks) -> list[int]:
    """For each rank, the first of those that share its disk: they see one another's files in `folder`."""
    meeting = folder / ranks.broadcast(folder / f".ranks-{secrets.token_hex(4)}").name
    meeting.mkdir(parents=True, exist_ok=True)
    (meeting / str(ranks.rank)).touch()
    ranks.barrier()
    builder_of = ranks.all_gather(min(int(path.name) for path in meeting.iterdir()))
    if builder_of[ranks.rank] == ranks.rank:
        shutil.rmtree(meeting)
    return builder_of


def _wait_for(builder: int, heartbeat: Heartbeat, timeout_minutes: float) -> None:
    if not heartbeat.is_done(BUILT, builder):
        console.say(f"waiting for {heartbeat.name(builder)}, which builds the data on its own disk")
    began = checked = time.monotonic()
    while not heartbeat.is_done(BUILT, builder):
        if (why := heartbeat.why()) is not None:
            raise RankLost(f"{why}; the data are not complete", said=True)
        if time.monotonic() - began > 60 * timeout_minutes:
            raise DataError(
                f"{heartbeat.name(builder)} has not built the data in {timeout_minutes:g} minutes; "
                "look at what it does, or set distributed.data_timeout_minutes higher"
            )
        if time.monotonic() - checked > HEARTBEAT_CHECK_S:
            checked = time.monotonic()
            if builder in heartbeat.dead_ranks():
                raise RankLost(
                    f"{heartbeat.name(builder)} does not answer, and it was building the data", said=False
                )
        time.sleep(POLL_S)
