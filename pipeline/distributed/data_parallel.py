"""How a model is spread over ranks: a replica on each (DDP), or a shard on each (FSDP2); on one rank, neither.

A sharded state has the same names and, after `gather_full_tensors`, the same tensors as one that is not, so that
checkpoints load anywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from pipeline.common.errors import ConfigError
from pipeline.config.training import DistributedConfig
from pipeline.distributed.process_group import Ranks

Tree = TypeVar("Tree")
HOOKS = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}


def replicate(model: nn.Module, config: DistributedConfig, ranks: Ranks) -> nn.Module:
    """The model with its gradients averaged over ranks; on one rank, or in shards, the model itself.

    Running statistics are averaged by the step (`Ranks.all_reduce_mean`), not taken from the first rank.
    """
    if ranks.world_size == 1 or is_sharded(model):
        return model
    replica = DistributedDataParallel(
        model,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        bucket_cap_mb=config.bucket_mb,
        static_graph=config.static_graph,
    )
    replica.broadcast_buffers = False
    replica.learns_graph = config.static_graph  # type: ignore[assignment]
    if config.compress != "none":
        replica.register_comm_hook(None, HOOKS[config.compress])
    return replica


@contextmanager
def gradient_sync(model: nn.Module, ranks: Ranks, *, last: bool) -> Iterator[None]:
    """Average gradients over ranks in the backward pass of the block, if it is the `last` of a step.

    DDP with a static graph learns the graph in its first step, and averages in each pass of that one: the same sums.
    """
    ranks.count_collective()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    with nullcontext() if last or model.learns_graph else model.no_sync():
        yield
    if last:
        model.learns_graph = False  # type: ignore[assignment]


def shard(model: nn.Module, backbone: nn.Module, ranks: Ranks) -> None:
    """Spread parameters, gradients and optimizer state over the ranks, in place.

    Each block of the backbone is gathered when it is needed (FSDP2, `torch.distributed.fsdp.fully_shard`).

    Args:
        backbone: the part of `model` that has the blocks.

    Raises:
        ConfigError: the backbone has no blocks in a list that repeats, so nothing would be saved.
    """
    if ranks.world_size == 1:
        return
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    blocks = [block for stage in backbone.modules() if _repeats(stage) for block in stage.children()]
    if not blocks:
        raise ConfigError(
            f"distributed.shard: {type(backbone).__name__} has no blocks to gather one by one; set it to none"
        )
    for block in reversed(blocks):  # inner ones first
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _repeats(stage: nn.Module) -> bool:
    """Whether a module is a row of blocks of one type, such as a transformer's or a residual stage's."""
    blocks = [*stage.children()]
    composed = all(any(True for _ in block.children()) for block in blocks)
    return isinstance(stage, nn.Sequential | nn.ModuleList) and composed and len(set(map(type, blocks))) == 1


def is_sharded(model: nn.Module) -> bool:
    """Whether a pass through the model needs all ranks."""
    return isinstance(model, FSDPModule)


def gather_full_tensors(tree: Tree, keep: bool) -> Tree:
    """A tree of plain types and tensors with every shard gathered, on the CPU; all ranks have to call it.

    Args:
        keep: whether this rank wants the tensors; where not, they are empty.
    """

    def gathered(tensor: DTensor) -> Tensor:
        full = tensor.full_tensor()
        return full.cpu() if keep else full.new_empty(0)

    full_tree: Tree = pytree.tree_map_only(DTensor, gathered, tree)
    return full_tree


def shard_like(value: Any, target: Tensor) -> Any:
    """A full tensor, which every rank has, sharded as `target` is; anything else as it is."""
    if not (isinstance(target, DTensor) and isinstance(value, Tensor) and value.shape == target.shape):
        return value
    return distribute_tensor(
        value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
    )
