"""Several ranks without a launcher: processes that a server forks, so that torch is imported once."""

import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pipeline.cli import main
from pipeline.common import console
from tests.helpers import tiny
from tests.helpers.processes import CONTEXT

PATIENCE_S = 120


class Ended(NamedTuple):
    """What a rank's function returned (None when it was killed), its process's exit code, and what it said."""

    value: Any
    code: int | None
    said: str


def run(function: Callable[..., Any], world: int, *args: Any) -> list[Ended]:
    """Call a function of a test module, `function(*args)`, on each of `world` ranks; what became of them."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent does
    ends, processes = [], []
    for rank in range(world):
        here, there = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_rank, args=(rank, world, store.port, there, function, args))
        process.start()
        there.close()
        ends.append(here)
        processes.append(process)
    return [_end(here, process) for here, process in zip(ends, processes, strict=True)]


def _end(here: Connection, process: Any) -> Ended:
    value, said = None, ""
    try:
        if here.poll(PATIENCE_S):
            value, said = here.recv()
    except EOFError:
        pass  # killed before it could say anything
    process.join(PATIENCE_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"a rank hung; it said: {said}")
    return Ended(value, process.exitcode, said)


def _rank(
    rank: int, world: int, port: int, there: Connection, function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    said = io.StringIO()
    console._console.file = said  # chosen at import: redirecting standard error comes too late
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        try:
            value = function(*args)
        except Exception:
            traceback.print_exc()
            there.send((None, said.getvalue()))
            sys.exit(1)
    there.send((value, said.getvalue()))


def run_verb(name: str, tmp: Path, *more: str) -> int:
    """On each rank: a verb of the command line; its exit code."""
    return main.run([name, *tiny.overrides(tmp, *more)])
