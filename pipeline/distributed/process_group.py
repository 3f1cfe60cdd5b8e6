"""This rank among all, and the collectives between them, in the environment that torchrun sets.

The same code runs on one device and on many; on one, nothing is initialised and nothing is sent. Agreements
(flags, objects, barriers) go over gloo, from the CPU, so that they neither wait for a GPU nor hang in one;
gradients and sums of the device's own tensors go over NCCL on GPUs and gloo on CPUs.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.common import console, hardware, nvidia, signals
from pipeline.common.errors import ConfigError, RankLost, Stopped, UserError, refusals_as_sentences
from pipeline.config.training import TrainConfig
from pipeline.distributed import environment
from pipeline.distributed.heartbeat import Heartbeat, rendezvous

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process: rank `rank` of `world_size`; `local_world_size` of them are on this machine."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    heartbeat: Heartbeat | None = None
    """None on one rank"""
    control: dist.ProcessGroup | None = None
    """the gloo group of the agreements; None on one rank"""

    @classmethod
    def single(cls, device: torch.device) -> "Ranks":
        """One process alone on a device: no collective sends anything."""
        return cls(rank=0, world_size=1, local_world_size=1, device=device)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in place."""
        if self.world_size > 1:
            self.count_collective()
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their mean over all ranks, in one collective."""
        if self.world_size == 1 or not tensors:
            return
        flat = self.all_reduce_sum(torch.cat([tensor.flatten() for tensor in tensors])) / self.world_size
        parts = flat.split_with_sizes([tensor.numel() for tensor in tensors])
        means = [mean.view_as(tensor) for mean, tensor in zip(parts, tensors, strict=True)]
        torch._foreach_copy_(list(tensors), means)

    def any_rank(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on any rank; all ranks get the same answer."""
        if self.world_size == 1:
            return list(flags)
        counts = torch.tensor(flags).int()
        self.count_collective()
        dist.all_reduce(counts, group=self.control)
        return [count > 0 for count in counts.tolist()]

    def all_gather(self, value: Value) -> list[Value]:
        """The values of all ranks in the order of the ranks, on every rank; they are pickled."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        self.count_collective()
        dist.all_gather_object(gathered, value, group=self.control)
        return gathered

    def broadcast(self, value: Value) -> Value:
        """Rank 0's value on every rank: plain types, and CPU tensors, which are sent one by one."""
        if self.world_size == 1:
            return value
        shape = [_empty(value, torch.device("meta")) if self.is_main else None]
        self.count_collective()
        dist.broadcast_object_list(shape, group=self.control)
        received: Value = value if self.is_main else _empty(shape[0], torch.device("cpu"))
        for leaf in pytree.tree_leaves(received):
            if isinstance(leaf, Tensor):
                sent = leaf.clone() if self.is_main else leaf  # a clone is dense: its memory is one row
                dist.broadcast(sent.as_strided((sent.numel(),), (1,)), src=0, group=self.control)
        return received

    def barrier(self) -> None:
        """Wait until all ranks have called it."""
        if self.world_size > 1:
            self.count_collective()
            dist.barrier(group=self.control)

    def count_collective(self) -> None:
        """Count a collective call, so that a rank that misses one can be named."""
        if self.heartbeat is not None:
            self.heartbeat.collectives += 1


def _empty(tree: Any, device: torch.device) -> Any:
    """The tree with uninitialised tensors of the same shapes and strides on a device."""
    return pytree.tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device=device), tree)


def select_device(train: TrainConfig) -> torch.device:
    """This rank's device, made ready: a GPU of its own, or the CPU, whose freed memory is kept between steps.

    What holds for the whole process is set, too (`hardware.configure`), for every verb alike.

    Raises:
        ConfigError: CUDA is asked for and there is none, or not one for each rank of this machine, or torch has no
            kernels for it.
    """
    hardware.configure(deterministic=train.deterministic, tf32=train.tf32)
    hardware.limit_threads()
    if train.device != "cpu" and torch.cuda.is_available():
        return _own_gpu()
    obstacle = nvidia.why_no_gpu() if train.device != "cpu" else None
    if train.device == "cuda":
        what, advice = obstacle or ("no CUDA device is visible", "set train.device=cpu or auto")
        raise ConfigError(f"train.device: cuda, but {what}; {advice}")
    if obstacle is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        console.warn(f"train.device: auto uses the CPU, because {obstacle.what}; {obstacle.next}")
    hardware.keep_freed_memory()
    return torch.device("cpu")


def _own_gpu() -> torch.device:
    """The GPU of this rank, set as the current one."""
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= there:
        raise ConfigError(f"{local + 1} ranks or more on a machine with {there} GPUs; start one rank per GPU")
    here = torch.device("cuda", local)
    torch.cuda.set_device(here)
    if (obstacle := nvidia.why_unusable(here)) is not None:
        raise ConfigError(f"train.device: {obstacle.what}; {obstacle.next}")
    return here


@contextmanager
def join(train: TrainConfig, timeout_s: float = 600.0) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment, and leave it at the end.

    Only rank 0 prints, except for errors. When the block raises, the other ranks are told why.

    Args:
        train: names the device, and how it computes.
        timeout_s: how long a collective may take; after that a rank counts as lost.

    Raises:
        ConfigError: CUDA is asked for and there is none, or the environment is not one of torchrun.
        FileRefused: the system refused a file in the block.
        RankLost: another rank died, ended with an error, or missed a collective.
    """
    world_size = environment.world_size()
    here = select_device(train)
    if world_size == 1:
        with refusals_as_sentences():
            yield Ranks.single(here)
        return
    timeout = timedelta(seconds=timeout_s)
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        store, rank, world = next(iter(dist.rendezvous("env://", timeout=timeout)))  # type: ignore[attr-defined]
        attempt = rendezvous(store, rank, world, timeout_s)
    except (TimeoutError, dist.DistError) as error:
        waiting = f"rank {os.environ.get('RANK')} timed out waiting"
        raise RankLost(f"{waiting}: {error}; the same command resumes", said=False) from error
    store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    heartbeat = Heartbeat(store, rank, world)
    console.sign(heartbeat.name(rank))
    if rank:
        console.mute()
    try:
        control = _init_process_groups(here, store, rank, world, timeout)
        with refusals_as_sentences():
            yield Ranks(rank, world, local_world, here, heartbeat, control)
    except Exception as error:
        if is_collective_error(error):
            raise _lost_rank_error(heartbeat) from error
        _tell_other_ranks(error, heartbeat)
        raise
    finally:
        heartbeat.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _init_process_groups(device: torch.device, store: Any, rank: int, world: int, timeout: timedelta) -> Any:
    """Start the process group for tensors of the device; return the gloo group for agreements."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    return dist.new_group(backend="gloo", timeout=timeout)


def _tell_other_ranks(error: Exception, heartbeat: Heartbeat) -> None:
    """Tell the other ranks why this one ends the run; what several ranks find out is printed once."""
    if isinstance(error, UserError):
        error.said = not heartbeat.first_to_say(str(error))
    elif not isinstance(error, Stopped):
        heartbeat.first_to_say(f"a bug, {type(error).__name__}: {error}")
        console.fail(f"a bug, {type(error).__name__}: {error}; its traceback follows")


def _lost_rank_error(heartbeat: Heartbeat) -> RankLost:
    """Find out which rank made a collective fail; the first rank to know prints it, and one of each machine."""
    with signals.deferred():  # torchrun ends the ranks that are left: each first says why
        verdict = heartbeat.verdict()
    said = not heartbeat.first_to_say(verdict) and os.environ.get("LOCAL_RANK") != "0"
    if dist.group.WORLD is not None:
        dist.group.WORLD.abort()  # a collective that hangs, on a GPU say, would not let this process end
    return RankLost(f"{verdict}; the same command resumes from the last checkpoint", said)


def is_collective_error(error: Exception) -> bool:
    """Whether a collective failed: gloo's errors are RuntimeErrors that name a place in its code."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
