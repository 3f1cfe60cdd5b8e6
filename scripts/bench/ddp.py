"""Two ranks against one, what the exchange of gradients costs, and a plan for many GPUs.

The ranks have one thread each and share a batch out. What the exchange costs is seen in steps with it and without,
taken by the same processes at the same time: what the backward pass hides of it costs nothing and is not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from measuring import Measurement, Options, in_pairs, of_runs
from step import CLASSES, configuration, drawn, fresh_state

if TYPE_CHECKING:
    from pipeline.distributed.process_group import Ranks

NAME, PX, BATCH = "resnet10t", 96, 32
TINY_BATCH, STEPS = 4, 3
FORMATS = ("none", "bf16")  # of distributed.compress


def measure(options: Options) -> Iterator[Measurement]:
    """Steps of one rank and of two, the exchange's share, and the plan, which is computed."""
    batch, rounds = (TINY_BATCH, 1) if options.tiny else (BATCH, 3)
    found: list[dict[str, float]] = []

    def images_of(ranks: int) -> float:
        measured = _launch(ranks, batch, rounds)
        if ranks > 1:
            found.append(measured)
        return measured["none"]

    what = f"{NAME} at {PX} px, {batch} images a step"
    pairs = in_pairs(lambda: images_of(2), lambda: images_of(1), rounds)
    yield Measurement(
        part="ddp",
        what=f"two ranks, {what}",
        unit="images/s",
        against="one rank; 2 times is perfect",
        **pairs,
    )
    for compress in FORMATS:
        yield _exchange(compress, what, batch, found)
    yield from plan()


def _exchange(compress: str, what: str, batch: int, found: list[dict[str, float]]) -> Measurement:
    """The share of a step by which the exchange makes it longer, beside what an exchange alone takes."""
    added_s = statistics.median(batch / each[compress] - batch / each["without"] for each in found)
    alone_s = statistics.median(each[f"{compress}_alone_s"] for each in found)
    return Measurement(
        part="ddp",
        what=f"exchange of gradients, distributed.compress={compress}, {what}",
        **of_runs(1 - each[compress] / each["without"] for each in found),
        unit="of a step",
        note=f"a step is {1e3 * added_s:.0f} ms longer; the same bytes alone take {1e3 * alone_s:.0f} ms",
    )


def _launch(ranks: int, batch: int, rounds: int) -> dict[str, float]:
    """What the first of so many ranks, of one thread each, has measured."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] * (ranks > 1)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, *launcher, __file__, str(batch), str(rounds)],
        env=os.environ | one_thread | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def rank(batch: int, rounds: int) -> None:
    """Print, on the first rank, images a second of steps with and without exchange, and seconds of exchanges alone."""
    from pipeline.distributed import process_group

    with process_group.join(configuration(NAME, PX, batch, "fp32").train) as ranks:
        takers = {compress: _taker(compress, batch, ranks) for compress in (*FORMATS, "without")}

        def slowest_s(run: Callable[[], object]) -> float:
            ranks.barrier()
            began = time.perf_counter()
            run()
            return float(max(ranks.all_gather(time.perf_counter() - began)))

        rates: dict[str, list[float]] = {name: [] for name in takers}
        for number in range(rounds + 1):
            for name, take in takers.items():
                seconds = slowest_s(partial(_repeat, take))
                if number:  # the first warms up
                    rates[name].append(STEPS * batch / seconds)
        measured = {name: statistics.median(rate) for name, rate in rates.items()}
        if ranks.world_size > 1:
            for compress, dtype in zip(FORMATS, (torch.float32, torch.bfloat16), strict=True):
                exchange = partial(torch.distributed.all_reduce, torch.zeros(parameters(NAME), dtype=dtype))
                alone_s = [slowest_s(exchange) for _ in range(rounds + 1)]
                measured[f"{compress}_alone_s"] = statistics.median(alone_s[1:])
        if ranks.is_main:
            print(json.dumps(measured))


def _repeat(take: Callable[[], object]) -> None:
    for _ in range(STEPS):
        take()


def _taker(compress: str, batch: int, ranks: "Ranks") -> Callable[[], object]:
    """What takes a step of this rank's share; "without": as if the rank were alone."""
    from pipeline.data.loader import Batch
    from pipeline.distributed.data_parallel import replicate
    from pipeline.distributed.process_group import Ranks
    from pipeline.training import phases, step

    is_alone, own = compress == "without", batch // ranks.world_size
    more = () if is_alone else (f"distributed.compress={compress}",)
    config = configuration(NAME, PX, batch, "fp32", *more)
    state = fresh_state(config)
    among = Ranks.single(ranks.device) if is_alone else ranks
    model, images = replicate(state.model, config.distributed, among), own if is_alone else batch
    settings = step.StepSettings(0, 0.1, (), None, own, "fp32", among)
    pictures, labels = drawn(PX, own)

    def take() -> object:
        made = Batch(pictures, labels, labels)
        return step.train_step(state, model, made, images, phases.Rates(1e-3, 0.9), settings).tolist()

    return take


def parameters(name: str) -> int:
    """How many numbers a step of a network exchanges."""
    from pipeline.config.model import ModelConfig
    from pipeline.models.build import build_model

    with torch.device("meta"):
        model, _ = build_model(ModelConfig(name=name, pretrained=False), CLASSES)
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Cluster:
    """What the plan assumes of a cluster: machines of 8 GPUs. Vendors' figures, of which it takes 70 %."""

    gpus_a_machine: int = 8
    within_bytes_s: float = 0.7 * 450e9  # NVLink 4, each direction, each GPU
    between_bytes_s: float = 0.7 * 50e9  # 400 Gb/s InfiniBand for each GPU
    within_latency_s: float = 3e-6  # a hop
    between_latency_s: float = 10e-6

    def all_reduce_s(self, size_bytes: float, gpus: int) -> float:
        """Seconds of an all-reduce in two levels of rings.

        A ring of n takes 2 (n - 1) hops, and each member sends 2 (n - 1) / n of the bytes (Patarasuk & Yuan 2009,
        doi:10.1016/j.jpdc.2008.09.002). Within machines first, then between them, each GPU with its share of the bytes.
        """
        inside = min(gpus, self.gpus_a_machine)
        machines = gpus // inside
        return sum(
            2 * (n - 1) / n * sent / speed + 2 * (n - 1) * latency
            for n, sent, speed, latency in (
                (inside, size_bytes, self.within_bytes_s, self.within_latency_s),
                (machines, size_bytes / inside, self.between_bytes_s, self.between_latency_s),
            )
        )


# docs/gpu.md: ResNet-50 at 448 px on an H100 in bf16, 64 images and 16 at once.
MEASURED_STEPS_S = {64: 0.0662, 16: 0.0257}
BACKWARD = 2 / 3  # of a step: two of its three products of each layer
BUCKET_BYTES = 25 * 2**20  # distributed.bucket_mb
GPUS = (8, 16, 64, 256, 1024)


def plan(cluster: Cluster = Cluster()) -> Iterator[Measurement]:
    """Images a second of ResNet-50 at 448 px on many H100, computed from measured steps; see `step_s`."""
    size_bytes = 4 * parameters("resnet50")
    for images, alone_s in MEASURED_STEPS_S.items():
        for gpus in GPUS:
            seconds = step_s(alone_s, size_bytes, gpus, cluster)
            one_s, all_s = images / alone_s, gpus * images / seconds
            yield Measurement(
                part="ddp",
                what=f"**computed, not measured**: ResNet-50 at 448 px on {gpus:,} H100, {images} images each",
                ours=all_s,
                unit="images/s",
                against=f"{gpus:,} times one",
                other=gpus * one_s,
                ratio=all_s / (gpus * one_s),
                note=f"{gpus * images:,} images a step of {1e3 * seconds:.1f} ms",
            )


def step_s(alone_s: float, size_bytes: float, gpus: int, cluster: Cluster) -> float:
    """Seconds of a step on many GPUs, each of which takes `alone_s` for its share of the images.

    Gradients go in buckets while the backward pass computes; what is left when it ends, and at least the last bucket,
    adds to the step. All GPUs are taken as equally fast, and the loader as fast enough.
    """
    buckets = max(1, round(size_bytes / BUCKET_BYTES))
    bucket_s = cluster.all_reduce_s(size_bytes / buckets, gpus)
    return alone_s + max(bucket_s, buckets * bucket_s - BACKWARD * alone_s)


if __name__ == "__main__":
    rank(*map(int, sys.argv[1:]))
