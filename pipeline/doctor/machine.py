"""Checks of the machine: what is installed, what computes, what it talks to, and whether there is room."""

import netrc
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from urllib.parse import urlparse

import torch

from pipeline.common.files import size_in_words
from pipeline.config.optim import Phase
from pipeline.config.schema import Config
from pipeline.data import prepare
from pipeline.data.image_store import JPEG_BYTES_PER_PIXEL
from pipeline.data.sources import cub200
from pipeline.doctor.finding import Finding, unlike
from pipeline.doctor.subject import SMALL, Subject, expected
from pipeline.models.precision import cpu_has_bf16
from pipeline.runs import environment
from pipeline.training import optimizer as optimizer_module

SHARED_MEMORY = Path("/dev/shm")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
SHOWN = ("torch", "torchvision", "timm", "albumentations", "numpy")
PREFETCHED = 2  # batches that a loader process has ready: DataLoader's prefetch_factor
BUCKET_BYTES = 25 << 20  # of gradients, that DistributedDataParallel sends at once
ALL_REDUCE_S = 3.0  # for each size
SMALL_PICTURE_BYTES = 2 * 4096  # a small picture takes a block of the disk, and its archive some more
UNPACKED = 1.05  # what an archive of JPEGs takes once unpacked, over its size


def packages(subject: Subject) -> Finding:
    """Versions; the same on all ranks."""
    about = environment.describe(subject.ranks.device)
    versions = {"python": about["python"], "cuda": about["cuda"], **about["packages"]}
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN)
    if found := unlike(versions, subject.ranks):
        return Finding("no-go", found, "install the same versions on all machines")
    return Finding("ok", f"Python {about['python']}, {shown}", numbers=versions)


def code(subject: Subject) -> Finding:
    """The commit; the same on all ranks."""
    about = environment.describe(subject.ranks.device)["git"]
    figures = "no git checkout" if about is None else f"commit {about['commit'][:10]}"
    if found := unlike({"the code": figures}, subject.ranks):
        return Finding("no-go", found, "bring the same commit to all machines")
    numbers = {"git": about}
    if about is None:
        return Finding("warning", figures, "run from a checkout: the run's record names its commit", numbers)
    if about["dirty"]:
        what_next = "commit first: the run's record names the commit alone"
        return Finding("warning", f"{figures}, and files differ from it", what_next, numbers)
    return Finding("ok", f"{figures}, no file differs from it", numbers=numbers)


def device(subject: Subject) -> Finding:
    """GPUs, or cores and threads; the same kind on all ranks."""
    ranks, wanted = subject.ranks, subject.config.train.device
    kind = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
    if wanted == "cuda" and ranks.device.type != "cuda":
        return Finding(
            "no-go",
            f"train.device is cuda and no CUDA device is visible ({_torch()})",
            "see whether nvidia-smi lists a GPU and torch.version.cuda suits its driver, or set train.device=cpu",
        )
    if found := unlike({"the device": kind}, ranks):
        return Finding("warning" if "CPU" not in found else "no-go", found, "take machines of one kind")
    if ranks.device.type == "cuda":
        about = torch.cuda.get_device_properties(ranks.device)
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        figures = (
            f"{ranks.world} x {kind}, {size_in_words(about.total_memory)}, compute capability "
            f"{about.major}.{about.minor}, CUDA {torch.version.cuda}, NCCL {nccl}"
        )
        return Finding("ok", figures, numbers={"device": kind, "memory_bytes": about.total_memory})
    if wanted == "auto" and NVIDIA_DRIVER.exists():
        return Finding(
            "no-go",
            f"this machine has an NVIDIA driver, and no CUDA device is visible ({_torch()})",
            "see whether nvidia-smi lists a GPU and torch.version.cuda suits its driver; to train on the CPU all "
            "the same set train.device=cpu",
        )
    return _cpu(subject)


def _torch() -> str:
    return f"torch {torch.__version__}, CUDA {torch.version.cuda or 'not built in'}"


def _cpu(subject: Subject) -> Finding:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    ranks = subject.ranks
    figures = (
        f"no GPU; {cores} cores, {ranks.local_world} x {threads} threads"
        if ranks.local_world > 1
        else (f"no GPU; {cores} cores, {threads} threads")
    )
    numbers = {"device": "cpu", "cores": cores, "threads": threads}
    if threads * ranks.local_world > cores:
        best = max(1, cores // ranks.local_world)
        return Finding("warning", figures, f"set OMP_NUM_THREADS={best}: more threads than cores", numbers)
    return Finding("ok", figures, numbers=numbers)


def precision(subject: Subject) -> Finding:
    """The number format that `auto` becomes, and the memory layout."""
    train, device = subject.config.train, subject.ranks.device
    asked = "" if train.precision != "auto" else " (auto)"
    layout = "channels last" if train.channels_last else "default layout"
    figures = f"{subject.precision}{asked}, {layout}" + (", compiled" if train.compile else "")
    numbers = {"precision": subject.precision, "channels_last": train.channels_last, "compile": train.compile}
    slow = subject.precision == "fp16" if device.type == "cpu" else False
    slow = slow or (subject.precision == "bf16" and device.type == "cpu" and not cpu_has_bf16())
    if slow:
        what_next = (
            "set train.precision=auto: this processor has no products in that format, and is slow in it"
        )
        return Finding("warning", figures, what_next, numbers)
    return Finding("ok", figures, numbers=numbers)


def tracking(subject: Subject) -> Finding:
    """Whether W&B will find a key."""
    mode = subject.config.tracking.wandb
    if mode != "online" or not subject.ranks.first:
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


def workers(subject: Subject) -> Finding:
    """Whether there are cores for the loader processes, and room in /dev/shm for the batches they have ready."""
    config, ranks, processes = subject.config, subject.ranks, subject.workers * subject.ranks.local_world
    if not processes:
        return Finding("not applicable", "no loader processes: each rank draws its own batches")
    cores = os.cpu_count() or 1
    images = -(-config.optim.images_per_step // ranks.world)
    ready = processes * PREFETCHED + 2 * ranks.local_world  # two more on their way, each rank
    needed, free = ready * images * 3 * config.data.image_px**2, shutil.disk_usage(SHARED_MEMORY).free
    figures = (
        f"{processes} loader processes on {cores} cores, for {ready} batches {size_in_words(needed)} of "
        f"{SHARED_MEMORY}; {size_in_words(free)} are free"
    )
    numbers = {"processes": processes, "cores": cores, "needed_bytes": needed, "free_bytes": free}
    if free < needed:
        what_next = "give the container more (docker run --ipc=host, or --shm-size), or lower data.workers"
        return Finding("no-go", figures, what_next, numbers)
    if processes > cores:
        what_next = f"set data.workers={max(1, cores // ranks.local_world)}: more processes than cores"
        return Finding("warning", figures, what_next, numbers)
    return Finding("ok", figures, numbers=numbers)


# Disk


def disk(subject: Subject) -> Finding:
    """What is still to be written, checkpoints and data, against what is free on each disk."""
    config = subject.asked
    to_come = {
        "checkpoints": ("run.root", config.run.root, _checkpoints_to_come(subject)),
        "data": ("data.root", config.data.root, 0 if subject.real else _data_to_come(config)),
    }
    needed: dict[int, int] = {}
    free: dict[int, int] = {}
    words = []
    for what, (key, folder, size) in to_come.items():
        home = _existing(folder)
        if problem := _not_writable(home):
            return Finding(
                "no-go", f"{folder}: cannot be written ({problem})", f"set {key} to another folder"
            )
        disk = home.stat().st_dev
        needed[disk], free[disk] = needed.get(disk, 0) + size, shutil.disk_usage(home).free
        coming = f"{size_in_words(size)} to come" if size else "nothing to come"
        words.append(f"{what}: {coming}, {size_in_words(free[disk])} free in {folder}")
    figures = "; ".join(words)
    numbers = {f"{what}_bytes": size for what, (_, _, size) in to_come.items()}
    if any(needed[disk] > free[disk] for disk in needed):
        what_next = "free some space, or set run.root or data.root to another disk"
        return Finding("no-go", figures, what_next, numbers)
    return Finding("ok", figures, numbers=numbers)


def _checkpoints_to_come(subject: Subject) -> int:
    """Bytes of last, best, those that are kept, and the one being written, without those that are there."""
    keep = subject.config.train.keep_checkpoints
    there = sum(path.stat().st_size for path in subject.config.checkpoints_dir.glob("*.pt"))
    return max(0, (3 + (keep if keep > 1 else 0)) * checkpoint_bytes(subject) - there)


def checkpoint_bytes(subject: Subject) -> int:
    """Size of a checkpoint: weights, their average, and what the hungriest optimizer remembers of them."""
    state = subject.state
    model = sum(tensor.nbytes for tensor in state.model.state_dict().values())
    learned = sum(parameter.nbytes for parameter in state.model.parameters())
    remembered = max(_remembered(phase) for phase in subject.config.optim.resolved_phases)
    copies = 1 if state.ema is None else 2
    return int(copies * model + remembered * learned)


def _remembered(phase: Phase) -> float:
    """The size of what a phase's optimizer remembers over that of the parameters, seen at a small one."""
    small = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = optimizer_module.make([{"params": [small], "weight_decay": 0.0}], phase, lr=1e-3)
    small.grad = torch.ones_like(small)
    optimizer.step()
    tensors = [value for value in optimizer.state[small].values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() for tensor in tensors) / small.numel()


def _data_to_come(config: Config) -> int:
    """Bytes that `make data` still writes: the archive, the unpacked pictures, the store."""
    data = config.data
    _, train, test = expected(config)
    per_pixel = 3.0 if data.store == "packed" else JPEG_BYTES_PER_PIXEL
    wider = 1.0 if data.resize == "squash" else 4 / 3
    store = round((train + test) * data.resize_px**2 * wider * per_pixel)
    if prepare.unpacked(data) is not None:
        return store
    if data.source == "synthetic":
        return store + (train + test) * data.synthetic.long_side_px**2
    if data.source in SMALL:
        return store + (train + test) * SMALL_PICTURE_BYTES
    if data.archive is not None:
        return store + (round(UNPACKED * data.archive.stat().st_size) if data.archive.is_file() else 0)
    there = sum(path.stat().st_size for path in (data.root / "downloads").glob("CUB_200_2011.tgz*"))
    return store + round((1 + UNPACKED) * cub200.ARCHIVE.size_bytes) - min(there, cub200.ARCHIVE.size_bytes)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _not_writable(folder: Path) -> str | None:
    """Why nothing can be written into a folder, or None: a file is made there and is gone again."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror


# Between ranks


def all_reduce(subject: Subject) -> Finding:
    """How fast ranks add up a tensor as large as the gradient, and whether the sum is right."""
    ranks = subject.ranks
    if ranks.world == 1:
        return Finding("not applicable", "one process: no gradients are exchanged")
    learned = sum(p.numel() for p in subject.state.model.parameters() if p.requires_grad)
    words, numbers = [], {}
    for size_bytes in sorted({min(BUCKET_BYTES, 4 * learned), 4 * learned}):
        seconds, right = _time_of_all_reduce(subject, size_bytes // 4)
        if not right:
            figures = f"the sum of {size_in_words(size_bytes)} over {ranks.world} ranks is wrong"
            return Finding("no-go", figures, "leave out machines one after another until the sum is right")
        # As nccl-tests has it (doc/PERFORMANCE.md): what each link carries, whatever the number of ranks.
        bus = 2 * (ranks.world - 1) / ranks.world * size_bytes / seconds / 1e9
        words.append(
            f"{size_in_words(size_bytes)} in {1000 * seconds:.3g} ms, {bus:.3g} GB/s of bus bandwidth"
        )
        numbers[str(size_bytes)] = {"seconds": seconds, "bus_gb_per_s": bus}
    by = "NCCL" if ranks.device.type == "cuda" else "gloo"
    hosts = len(set(ranks.gather(platform.node())))
    where = f"{ranks.world} ranks on {hosts} host{'s' * (hosts > 1)}"
    return Finding("ok", f"{by}, {where}, sums are right; {'; '.join(words)} (the gradient)", numbers=numbers)


def _time_of_all_reduce(subject: Subject, count: int) -> tuple[float, bool]:
    """Seconds (of the slowest rank) of an all-reduce of float32 numbers, and whether its sum is right."""
    ranks = subject.ranks
    tensor = torch.full((count,), float(ranks.rank + 1), device=ranks.device)
    ranks.sum(tensor)
    right = bool((tensor == ranks.world * (ranks.world + 1) / 2).all())
    tensor.zero_()  # else it would grow without end

    def seconds(times: int) -> float:
        ranks.wait()
        started = time.perf_counter()
        for _ in range(times):
            ranks.sum(tensor)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        return float(max(ranks.gather(time.perf_counter() - started))) / times

    return seconds(max(1, min(20, int(ALL_REDUCE_S / seconds(1))))), all(ranks.gather(right))
