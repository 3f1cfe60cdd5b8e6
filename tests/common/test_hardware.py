"""Cores and memory that are ours: less than the machine has, in a container or a job."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._inductor.exc import InductorError

from pipeline.common import cgroups, hardware

JOB = "slurm/job_7"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for control groups, on a machine with 64 cores; this process is in one of version 2."""
    monkeypatch.setattr(cgroups, "MOUNTED", tmp_path)
    monkeypatch.setattr(cgroups, "LISTED", tmp_path / "listed")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "listed").write_text(f"0::/{JOB}\n")
    return tmp_path


def put(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 64), ("200000 100000", 2), ("250000 100000", 3), ("1000 100000", 1)],
)
def test_cores_follow_the_quota_of_a_container(groups: Path, quota: str, expected: int) -> None:
    """There the listed path is the host's, and only the root is to be seen."""
    put(groups, cpu__max=quota)
    assert hardware.cores() == expected


def test_cores_follow_the_smallest_quota_of_the_groups_around(groups: Path) -> None:
    put(groups / JOB, cpu__max="max 100000")
    put(groups / "slurm", cpu__max="400000 100000")
    assert hardware.cores() == 4


def test_cores_follow_the_quota_of_version_1(groups: Path) -> None:
    (groups / "listed").write_text(f"5:memory:/other\n4:cpu,cpuacct:/{JOB}\n0::/\n")
    put(groups / "cpu,cpuacct" / JOB, cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    put(groups / "cpu,cpuacct", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert hardware.cores() == 3


def test_affinity_holds_where_it_is_smaller(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(groups, cpu__max="400000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert hardware.cores() == 1


def test_processes_that_share_the_cores_have_a_part_each(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(groups, cpu__max="700000 100000")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    for sharing, cores in ((1, 7), (2, 3), (8, 1)):
        monkeypatch.setenv(hardware.SHARING, str(sharing))
        assert hardware.cores() == cores


def test_free_memory_follows_the_groups_and_counts_cached_files_as_free(groups: Path) -> None:
    cpu = torch.device("cpu")
    put(groups / JOB, memory__max="1000", memory__current="900", memory__stat="anon 300\ninactive_file 600")
    assert hardware.free_bytes(cpu) == 700
    put(groups / "slurm", memory__max="500", memory__current="450")
    assert hardware.free_bytes(cpu) == 50
    (groups / "listed").write_text("5:memory:/\n")
    used = {"memory__limit_in_bytes": "80", "memory__usage_in_bytes": "60"}
    put(groups / "memory", **used, memory__stat="total_inactive_file 7")
    assert hardware.free_bytes(cpu) == 27


def test_without_control_groups_the_machine_is_ours(groups: Path) -> None:
    (groups / "listed").unlink()
    assert hardware.cores() == 64
    assert hardware.free_bytes(torch.device("cpu")) > 2**20


def test_free_memory_is_known_on_macos(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(os.sysconf_names, "SC_AVPHYS_PAGES", raising=False)
    assert hardware.free_bytes(torch.device("cpu")) > 2**20


def test_torch_computes_in_no_more_threads_than_cores_unless_told(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(groups, cpu__max="200000 100000")
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    hardware.limit_threads()
    assert asked == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    hardware.limit_threads()
    assert asked == [2]


@pytest.fixture
def as_before() -> Iterator[None]:
    """Leaves what is set for this process as it was."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    workspace = os.environ.get(hardware.CUBLAS_WORKSPACE)
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    os.environ.pop(hardware.CUBLAS_WORKSPACE, None)
    if workspace is not None:
        os.environ[hardware.CUBLAS_WORKSPACE] = workspace


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_what_is_asked_for_by_old_and_new_names(as_before: None, tf32: bool) -> None:
    """A mix of both would raise an error when torch.compile reads one of them."""
    hardware.configure(deterministic=False, tf32=tf32)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (tf32, tf32)
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == tf32
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == tf32


def test_the_workspaces_of_cublas_are_set_before_any_run_and_stay_the_users(
    as_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(hardware.CUBLAS_WORKSPACE, raising=False)
    hardware.configure(deterministic=False)  # cuBLAS reads them once: a deterministic run may follow
    assert os.environ[hardware.CUBLAS_WORKSPACE] == ":4096:8"
    os.environ[hardware.CUBLAS_WORKSPACE] = ":16:8"
    hardware.configure(deterministic=True)
    assert os.environ[hardware.CUBLAS_WORKSPACE] == ":16:8"
    assert torch.are_deterministic_algorithms_enabled()
    hardware.configure(deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_convolutions_are_chosen_by_rule_within_a_block_alone(as_before: None) -> None:
    cudnn = torch.backends.cudnn
    hardware.configure(deterministic=False)
    with hardware.repeatable_convolutions():
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
    assert (cudnn.benchmark, cudnn.deterministic) == (True, False)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),  # cuDNN 9
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA ran out of memory outside PyTorch's allocator. If this workload"), True),
        (InductorError(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), None), True),
        (RuntimeError("NCCL error ... Last error:\nCuda failure 2 'out of memory'"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_errors_of_memory_are_known_whoever_allocates(error: Exception, is_memory: bool) -> None:
    assert hardware.is_out_of_memory(error) == is_memory


def test_what_the_allocator_holds_of_a_gpu_and_no_tensor_uses_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 8000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3000)
    assert hardware.free_bytes(torch.device("cuda", 0)) == 3000
