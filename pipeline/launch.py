"""torchrun for this program: its options, then a verb; its exit code is what the ranks' own codes say.

    python -m pipeline.launch --standalone --nproc-per-node 4 train --config configs/cub200_resnet50.yaml
    python -m pipeline.launch --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train ...

The same as `torchrun ... -m pipeline VERB ...`, but for five things. A signal reaches the ranks (SIGUSR1 as well),
which have `SHUTDOWN_S` to save. Whoever calls learns whether to call again: 75 after a signal or a lost machine, 2
for what the user can fix, 1 for a bug, 128 + n for a rank killed by signal n. The cores are shared among the ranks
of a machine. A machine alone needs no name that resolves. And a rank that ended has said why, so that no traceback of
the launcher follows.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError

from pipeline.common import console, hardware
from pipeline.common.errors import ConfigError, RankLost, Stopped

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
SHUTDOWN_S = 300  # for the step in progress and the checkpoint
WATCH_S, UNREACHABLE_S = 5.0, 30.0


def launch(argv: Sequence[str]) -> int:
    """Run the ranks of this machine to their end; return the exit code."""
    args = torchrun.parse_args([f"--signals-to-handle={SIGNALS}", f"--shutdown-timeout={SHUTDOWN_S}", *argv])  # type: ignore[no-untyped-call]
    args.module, args.training_script_args = True, [args.training_script, *args.training_script_args]
    args.training_script = "pipeline"
    try:
        args.local_addr = args.local_addr or _own_address(args.nnodes, args.rdzv_backend)
        ranks = torchrun.determine_local_world_size(args.nproc_per_node)
        if ranks < 1:
            raise ConfigError(f"--nproc-per-node (make: GPUS) is {ranks}; give 1 or more")
    except (
        ConfigError,
        ValueError,
    ) as error:  # ValueError: torchrun's, of a number that is none, or GPUs without CUDA
        console.fail(f"launch: {error}")
        return ConfigError.exit_code
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, hardware.cores() // ranks)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a rank that is lost is named, not its stack
    threading.Thread(target=_watch, args=(args.rdzv_endpoint,), daemon=True).start()
    try:
        torchrun.run(args)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return worst(codes)
    except SignalException as error:
        console.say(f"stopped by {error.sigval.name}; the same command resumes")
        return Stopped.exit_code
    except (RendezvousError, dist.DistError) as error:
        where = args.rdzv_endpoint or "this machine"
        console.fail(
            f"the rendezvous at {where} cannot be reached, or not all machines joined ({error}); once they are "
            "there, the same command resumes"
        )
        return RankLost.exit_code
    return 0


def _own_address(nodes: str, backend: str) -> str | None:
    """The address that ranks get of this machine; None: its name, which torchrun takes by itself.

    Where that name does not resolve, torchrun would try to reach it for half an hour.

    Args:
        nodes: how many machines, `N` or `LEAST:MOST`.
        backend: of the rendezvous; `static` gives the ranks the master's address.

    Raises:
        ConfigError: other machines need the name, and it does not resolve.
    """
    _, most = torchrun.parse_min_max_nnodes(nodes)
    if most == 1:
        return "localhost"
    if backend == "static":
        return None
    name = socket.getfqdn()
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise ConfigError(
            f"the name of this machine, {name}, does not resolve ({error.strerror}); add it to /etc/hosts, or give "
            "--local-addr=ADDRESS, at which the other machines reach this one"
        ) from error
    return None


def _watch(endpoint: str) -> None:
    """End this process when its ranks have ended and the rendezvous is out of reach.

    torchrun itself goes on asking a machine that a cut network has taken away, until TCP gives up.
    """
    host, _, port = endpoint.rpartition(":")
    had_ranks, reached = False, time.monotonic()
    while host and port.isdigit():
        time.sleep(WATCH_S)
        if _ranks_alive():
            had_ranks = True
        if _ranks_alive() or not had_ranks or _reaches(host, int(port)):
            reached = time.monotonic()
        elif time.monotonic() - reached > UNREACHABLE_S:
            console.fail(f"the rendezvous at {endpoint} no longer answers; the same command resumes")
            os._exit(RankLost.exit_code)


def _ranks_alive() -> bool:
    """Whether a process that the main thread started has not ended; where Linux does not say it: yes."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return not listed.exists() or any(map(_runs, listed.read_text().split()))


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _reaches(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=WATCH_S).close()
    except OSError:
        return False
    return True


def worst(codes: dict[int, int]) -> int:
    """The exit code for those of the ranks that ended first, by rank: an error weighs more than a stop.

    A rank that was killed could not say so itself: it is named.
    """
    errors = [code for code in codes.values() if code > 0 and code != Stopped.exit_code]
    for rank, code in codes.items():
        if code < 0 and not errors:  # else it was the launcher that ended what was left
            console.fail(f"rank {rank} was killed by signal {-code}; dmesg says whether memory ran out")
    killed = [128 - code for code in codes.values() if code < 0]
    return [*errors, *killed, Stopped.exit_code][0]


def main() -> NoReturn:
    """Entry point of `python -m pipeline.launch`."""
    sys.exit(launch(sys.argv[1:]))


if __name__ == "__main__":
    main()
