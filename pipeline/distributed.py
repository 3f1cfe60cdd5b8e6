"""Who this rank is, and how ranks agree: torchrun's environment, and no launcher at all for one.

The same code runs on one device and on many; on one, nothing is initialised and nothing is sent.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline import memory
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among all: `rank` of `world`; `local_world` of them are on this machine."""

    rank: int
    world: int
    local_world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is raised on any rank: the same answer on all of them."""
        if self.world == 1:
            return list(flags)
        return [count > 0 for count in self.sum(torch.tensor(flags, device=self.device).int()).tolist()]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on all ranks, by rank."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.world > 1:
            dist.barrier()

    def alone(self, parallel: nn.Module, while_: bool) -> AbstractContextManager[None]:
        """No gradients are exchanged in the backward passes of the block, while more of a step are to come."""
        if while_ and isinstance(parallel, nn.parallel.DistributedDataParallel):
            return parallel.no_sync()
        return nullcontext()

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over ranks; on one rank, the model itself."""
        if self.world == 1:
            return model
        on_gpu = self.device.type == "cuda"
        return nn.parallel.DistributedDataParallel(
            model, device_ids=[self.device] if on_gpu else None, gradient_as_bucket_view=True
        )


def place(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """This rank's device, made ready: a GPU of its own, or the CPU with its memory kept between steps.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device: cuda, but no CUDA device is visible; set train.device=cpu or auto")
    if device != "cpu" and torch.cuda.is_available():
        here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(here)
        return here
    memory.keep_freed_memory()
    return torch.device("cpu")


@contextmanager
def ranks(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment, and leave it at the end.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    here = place(device)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(0, 1, 1, here)
        return
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, world, local_world, here)
    finally:
        dist.destroy_process_group()
