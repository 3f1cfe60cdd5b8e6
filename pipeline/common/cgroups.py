"""The limits of this process's control groups (cgroups(7), versions 1 and 2): of a container, a Slurm job, a service."""

from collections.abc import Iterator
from pathlib import Path

LISTED = Path("/proc/self/cgroup")
MOUNTED = Path("/sys/fs/cgroup")
MEMORY_V2 = "memory.max", "memory.current", "inactive_file"
MEMORY_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def cpu_limit() -> float | None:
    """Processors' worth of time that the groups grant; None without a limit."""
    quotas = [_read(folder / "cpu.max").split() for folder in _folders("cpu")]
    quotas += [
        [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        for folder in _folders("cpu")
    ]
    limits = [
        int(quota[0]) / int(quota[1]) for quota in quotas if quota and quota[0] not in ("", "max", "-1")
    ]
    return min(limits, default=None)


def free_memory_bytes() -> int | None:
    """Bytes that the groups still grant; None without a limit. Files in the page cache give way."""
    free = []
    for folder in _folders("memory"):
        for limit_name, used_name, cache_name in (MEMORY_V2, MEMORY_V1):
            limit, used = _read(folder / limit_name), _read(folder / used_name)
            if limit in ("", "max"):
                continue
            stat = dict(line.split(maxsplit=1) for line in _read(folder / "memory.stat").splitlines())
            free.append(max(0, int(limit) - int(used) + int(stat.get(cache_name, 0))))
    return min(free, default=None)


def _folders(controller: str) -> Iterator[Path]:
    """The group in which a controller has this process, and the groups above it.

    Version 2 has one tree, version 1 one for each controller. In a container the listed path may be the host's;
    then only the root is there, which is the container's group.
    """
    for line in _read(LISTED).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = MOUNTED / controllers
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            yield folder
            if folder == root:
                break


def _read(path: Path) -> str:
    """A file's text; empty where there is none, or it is not ours to read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
