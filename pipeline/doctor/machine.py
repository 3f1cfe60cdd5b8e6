"""Checks of the machine: what is installed, what computes, the key of W&B, cores and memory for loader processes."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

import torch

from pipeline.common import hardware, nvidia
from pipeline.common.files import size_in_words
from pipeline.data import shared_memory
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding, difference_between_ranks
from pipeline.doctor.products import LoaderProcesses
from pipeline.models.precision import has_units
from pipeline.runs import environment

SHOWN = ("torch", "torchvision", "timm", "albumentations", "numpy")


def packages(context: CheckContext) -> Finding:
    """Show the versions of Python and the libraries, which all ranks have to share."""
    about = environment.describe(context.ranks.device)
    versions = {"python": about["python"], "cuda": about["cuda"], **about["packages"]}
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN)
    if difference := difference_between_ranks(versions, context.ranks):
        return Finding("no-go", difference, "install the same versions on all machines")
    return Finding("ok", f"Python {about['python']}, {shown}", numbers=versions)


def code(context: CheckContext) -> Finding:
    """Show the commit, which all ranks have to share."""
    about = environment.describe(context.ranks.device)["git"]
    figures = "no git checkout" if about is None else f"commit {about['commit'][:10]}"
    if difference := difference_between_ranks({"the code": figures}, context.ranks):
        return Finding("no-go", difference, "check out the same commit on all machines")
    numbers = {"git": about}
    if about is None:
        return Finding(
            "warning", figures, "run from a checkout: the run's record then names its commit", numbers
        )
    if about["dirty"]:
        what_next = "commit first: the run's record names only the commit"
        return Finding("warning", f"{figures}, and files differ from it", what_next, numbers)
    return Finding("ok", f"{figures}, no file differs from it", numbers=numbers)


def device(context: CheckContext) -> Finding:
    """Show the GPUs, or cores and threads; the kind of device has to be the same on all ranks."""
    ranks, configured = context.ranks, context.config.train.device
    kind = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
    obstacle = nvidia.why_no_gpu() if configured != "cpu" else None
    if configured == "cuda" and ranks.device.type != "cuda":
        missing = f"no CUDA device is visible to torch {torch.__version__}"
        what, what_next = obstacle or (missing, "check that nvidia-smi lists a GPU, or set train.device=cpu")
        return Finding("no-go", f"train.device is cuda, and {what}", what_next)
    if difference := difference_between_ranks({"the device": kind}, ranks):
        return Finding(
            "warning" if "CPU" not in difference else "no-go", difference, "use machines of one kind"
        )
    if ranks.device.type == "cuda":
        about = torch.cuda.get_device_properties(ranks.device)
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        figures = (
            f"{ranks.world_size} x {kind}, {size_in_words(about.total_memory)}, compute capability "
            f"{about.major}.{about.minor}, driver {nvidia.driver()}, CUDA {torch.version.cuda}, NCCL {nccl}"
        )
        return Finding("ok", figures, numbers={"device": kind, "memory_bytes": about.total_memory})
    if obstacle is not None:
        return Finding("no-go", obstacle.what, obstacle.next)
    return _cpu(context)


def _cpu(context: CheckContext) -> Finding:
    cores, threads = hardware.cores(), torch.get_num_threads()
    ranks = context.ranks
    figures = (
        f"no GPU; {cores} cores, {ranks.local_world_size} x {threads} threads"
        if ranks.local_world_size > 1
        else (f"no GPU; {cores} cores, {threads} threads")
    )
    numbers = {"device": "cpu", "cores": cores, "threads": threads}
    if threads * ranks.local_world_size > cores:
        best = max(1, cores // ranks.local_world_size)
        return Finding("warning", figures, f"set OMP_NUM_THREADS={best}: more threads than cores", numbers)
    return Finding("ok", figures, numbers=numbers)


def precision(context: CheckContext) -> Finding:
    """Show the precision that `auto` or `fastest` becomes, and the memory layout."""
    train, device = context.config.train, context.ranks.device
    asked = f" ({train.precision})" if train.precision in ("auto", "fastest") else ""
    layout = "channels last" if train.channels_last else "default layout"
    tf32 = ", TF32" if train.tf32 and device.type == "cuda" else ""
    figures = f"{context.precision}{asked}{tf32}, {layout}" + (", compiled" if train.compile else "")
    numbers = {"precision": context.precision, "channels_last": train.channels_last, "compile": train.compile}
    if not has_units(context.precision, device):
        what_next = (
            "set train.precision=auto: this processor has no products in that format, and is slow in it"
        )
        return Finding("warning", figures, what_next, numbers)
    return Finding("ok", figures, numbers=numbers)


def tracking(context: CheckContext) -> Finding:
    """Look for the key of W&B, when it is online."""
    mode = context.config.tracking.wandb
    if mode != "online" or not context.ranks.is_main:
        return Finding("not applicable", f"tracking.wandb is {mode}")
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    host = urlparse(url).hostname or url
    if os.environ.get("WANDB_API_KEY"):
        return Finding("ok", f"W&B at {host}, its key is in WANDB_API_KEY")
    if _in_netrc(host):
        return Finding("ok", f"W&B at {host}, its key is in ~/.netrc")
    return Finding(
        "no-go",
        f"tracking.wandb is online, and there is no key for {host}",
        "set WANDB_API_KEY, or tracking.wandb=offline",
    )


def _in_netrc(host: str) -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return path.is_file() and netrc.netrc(path).authenticators(host) is not None
    except netrc.NetrcParseError:
        return False


def workers(context: CheckContext) -> tuple[Finding, LoaderProcesses | None]:
    """Compare the loader processes with the cores, and their prefetched batches with the space in /dev/shm."""
    ranks, processes = context.ranks, context.workers * context.ranks.local_world_size
    if not processes:
        figures = "no loader processes: each rank draws its own batches"
        return Finding("not applicable", figures), LoaderProcesses(0)
    cores, free = hardware.cores(), shared_memory.free_bytes()
    needed = shared_memory.needed_bytes(context.config, context.workers, ranks)
    figures = f"{processes} loader processes on {cores} cores"
    numbers = {"processes": processes, "cores": cores, "needed_bytes": needed, "free_bytes": free}
    if free is not None:
        figures += f"; their batches take {size_in_words(needed)} of {shared_memory.FOLDER}"
        figures += f", {size_in_words(free)} are free"
        if free < needed:
            return Finding("no-go", figures, shared_memory.REMEDY, numbers), None
    if processes > cores:
        what_next = f"set data.workers={max(1, cores // ranks.local_world_size)}: more processes than cores"
        return Finding("warning", figures, what_next, numbers), LoaderProcesses(context.workers)
    return Finding("ok", figures, numbers=numbers), LoaderProcesses(context.workers)
