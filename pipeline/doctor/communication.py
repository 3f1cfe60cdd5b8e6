"""How long the ranks take to add up gradients."""

import platform
import time

import torch

from pipeline.common.files import size_in_words
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding

BUCKET_BYTES = 25 << 20  # of gradients, that DistributedDataParallel sends at once


ALL_REDUCE_S = 3.0  # for each size


def all_reduce(subject: CheckContext) -> Finding:
    """How fast ranks add up a tensor as large as the gradient, and whether the sum is right."""
    ranks = subject.ranks
    if ranks.world_size == 1:
        return Finding("not applicable", "one process: no gradients are exchanged")
    learned = sum(p.numel() for p in subject.state.model.parameters() if p.requires_grad)
    words, numbers = [], {}
    for size_bytes in sorted({min(BUCKET_BYTES, 4 * learned), 4 * learned}):
        seconds, right = _time_of_all_reduce(subject, size_bytes // 4)
        if not right:
            figures = f"the sum of {size_in_words(size_bytes)} over {ranks.world_size} ranks is wrong"
            return Finding("no-go", figures, "leave out machines one after another until the sum is right")
        # As nccl-tests has it (doc/PERFORMANCE.md): what each link carries, whatever the number of ranks.
        bus = 2 * (ranks.world_size - 1) / ranks.world_size * size_bytes / seconds / 1e9
        words.append(
            f"{size_in_words(size_bytes)} in {1000 * seconds:.3g} ms, {bus:.3g} GB/s of bus bandwidth"
        )
        numbers[str(size_bytes)] = {"seconds": seconds, "bus_gb_per_s": bus}
    by = "NCCL" if ranks.device.type == "cuda" else "gloo"
    hosts = len(set(ranks.all_gather(platform.node())))
    where = f"{ranks.world_size} ranks on {hosts} host{'s' * (hosts > 1)}"
    return Finding("ok", f"{by}, {where}, sums are right; {'; '.join(words)} (the gradient)", numbers=numbers)


def _time_of_all_reduce(subject: CheckContext, count: int) -> tuple[float, bool]:
    """Seconds (of the slowest rank) of an all-reduce of float32 numbers, and whether its sum is right."""
    ranks = subject.ranks
    tensor = torch.full((count,), float(ranks.rank + 1), device=ranks.device)
    ranks.all_reduce_sum(tensor)
    right = bool((tensor == ranks.world_size * (ranks.world_size + 1) / 2).all())
    tensor.zero_()  # else it would grow without end

    def seconds(times: int) -> float:
        ranks.barrier()
        started = time.perf_counter()
        for _ in range(times):
            ranks.all_reduce_sum(tensor)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        return float(max(ranks.all_gather(time.perf_counter() - started))) / times

    return seconds(max(1, min(20, int(ALL_REDUCE_S / seconds(1))))), all(ranks.all_gather(right))
