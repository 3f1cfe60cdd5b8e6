"""The check of gradient exchange: whether an all-reduce adds up right, and how fast."""

import platform
import time

import torch

from pipeline.common.files import size_in_words
from pipeline.distributed.process_group import Ranks
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding
from pipeline.doctor.products import BuiltModel

BUCKET_BYTES = 25 << 20  # of gradients, that DistributedDataParallel sends at once
BUDGET_S = 3.0  # for each size
MOST_REPEATS = 20


def all_reduce(context: CheckContext, model: BuiltModel) -> Finding:
    """Add up a tensor as large as the gradient over all ranks, and one as large as a bucket of it."""
    ranks = context.ranks
    if ranks.world_size == 1:
        return Finding("not applicable", "one process: no gradients are exchanged")
    gradient_bytes = 4 * sum(p.numel() for p in model.state.model.parameters() if p.requires_grad)
    figures, numbers = [], {}
    for size_bytes in sorted({min(BUCKET_BYTES, gradient_bytes), gradient_bytes}):
        seconds, is_right = _time_all_reduce(ranks, size_bytes // 4)
        if not is_right:
            wrong = f"the sum of {size_in_words(size_bytes)} over {ranks.world_size} ranks is wrong"
            return Finding("no-go", wrong, "leave out machines one by one until the sum is right")
        # As nccl-tests has it (doc/PERFORMANCE.md): what each link carries, whatever the number of ranks.
        bus = 2 * (ranks.world_size - 1) / ranks.world_size * size_bytes / seconds / 1e9
        figures.append(
            f"{size_in_words(size_bytes)} in {1000 * seconds:.3g} ms, {bus:.3g} GB/s of bus bandwidth"
        )
        numbers[str(size_bytes)] = {"seconds": seconds, "bus_gb_per_s": bus}
    backend = "NCCL" if ranks.device.type == "cuda" else "gloo"
    hosts = len(set(ranks.all_gather(platform.node())))
    where = f"{ranks.world_size} ranks on {hosts} host{'s' * (hosts > 1)}"
    return Finding(
        "ok", f"{backend}, {where}, sums are right; {'; '.join(figures)} (the gradient)", numbers=numbers
    )


def _time_all_reduce(ranks: Ranks, count: int) -> tuple[float, bool]:
    """Seconds (of the slowest rank) of an all-reduce of float32 [count], and whether its sum is right."""
    tensor = torch.full((count,), float(ranks.rank + 1), device=ranks.device)
    ranks.all_reduce_sum(tensor)
    is_right = bool((tensor == ranks.world_size * (ranks.world_size + 1) / 2).all())
    tensor.zero_()  # else it would grow without end

    def seconds(repeats: int) -> float:
        ranks.barrier()
        started = time.perf_counter()
        for _ in range(repeats):
            ranks.all_reduce_sum(tensor)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        return float(max(ranks.all_gather(time.perf_counter() - started))) / repeats

    repeats = max(1, min(MOST_REPEATS, int(BUDGET_S / seconds(1))))
    return seconds(repeats), all(ranks.all_gather(is_right))
