"""This machine and process: cores, GPUs, memory, and what is set for the whole process.

Torch is imported where it is needed: `--help` answers without it.
"""

import ctypes
import math
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common import cgroups

if TYPE_CHECKING:
    import torch

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1
# Of messages of the CPU's allocator; of CUDA, where torch or Triton calls it; of cuBLAS and cuDNN; of NCCL.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA ran out of memory outside PyTorch's allocator",
    "Triton Error [CUDA]: out of memory",
    "_STATUS_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
    "'out of memory'",
)
DEVICES = "CUDA_VISIBLE_DEVICES"
SHARING = "PLUMAGE_SHARING"  # processes side by side, each with a GPU, that share this machine's cores
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory in the process; whether there was a glibc to tell.

    By default every large tensor of a step on the CPU is mapped and unmapped, and its pages are
    zeroed by the kernel each time: a fifth to a third of the time of small networks.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))


def peak_bytes(device: "torch.device") -> int:
    """The most memory that was in use so far: on a GPU by tensors, on the CPU by this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in bytes, and in KiB


def cores() -> int:
    """Cores that this process may use: by its affinity, and by the processor time of its control groups.

    Of processes that share them (`SHARING`), each has its part.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cgroups.cpu_limit()
    allowed = allowed if limit is None else min(allowed, math.ceil(limit))
    return max(1, allowed // int(os.environ.get(SHARING, "1")))


def gpus() -> list[str]:
    """The GPUs that this process can use, as `CUDA_VISIBLE_DEVICES` names them.

    None on machines without, and where torch cannot use those that are there, as with a driver that is too old.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    given = os.environ.get(DEVICES)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(torch.cuda.device_count())]


def free_bytes(device: "torch.device") -> int:
    """Free memory of a GPU, or of this machine and its container.

    What torch's allocator holds of a GPU and no tensor uses is free for this process.
    """
    if device.type == "cuda":
        import torch

        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    # macOS tells the size of the whole memory alone.
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        free = int(available.split()[1]) * 1024
    granted = cgroups.free_memory_bytes()
    return free if granted is None else min(free, granted)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: a GPU's, or this machine's.

    Torch has a type of error only for its own allocator; CUDA, cuBLAS, cuDNN and NCCL allocate by themselves.
    """
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def limit_threads() -> None:
    """Let torch compute in no more threads than `cores`: by itself it knows affinity, but not control groups."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


def configure(*, deterministic: bool, tf32: bool = False) -> None:
    """Set what holds for the whole process, before it computes: cuDNN's choice of algorithms, torch's, and TF32.

    cuBLAS reads the size of its workspaces at its first call in a process, so that one size is set for all: a run
    with deterministic algorithms may follow one without. It costs "approximately 24 MiB" of a GPU's memory (cuBLAS
    documentation, "Results Reproducibility"), and on Hopper and later nothing: there it is torch's default.

    Args:
        deterministic: only algorithms that give the same bits in every run; an operation that has none raises
            a RuntimeError.
        tf32: whether products and convolutions of float32 keep 10 bits of each factor's mantissa, on GPUs that have
            such units. Set by the older names (`allow_tf32`): torch.compile reads them, and where the newer ones
            (`fp32_precision`) were set that reading raises an error.
    """
    import torch

    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.backends.cudnn.benchmark = not deterministic
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def repeatable_convolutions() -> Iterator[None]:
    """Have cuDNN choose by rule, not by time, and among deterministic algorithms alone: the same bits in any process.

    Torch remembers the algorithm of each shape, and those of deterministic ones apart: what a training has timed is
    not taken here.
    """
    from torch.backends import cudnn

    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def any_algorithms() -> Iterator[None]:
    """Allow operations without a deterministic algorithm, which a deterministic run refuses."""
    import torch

    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
