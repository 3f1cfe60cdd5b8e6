"""Speeds as ratios: both sides run in turn, in one go, on the same images.

    python scripts/bench.py all|loader|step|data|ddp|tracking [--config FILE] [section.key=value ...]

loader  our loader from the store against torchvision's ImageFolder, PIL, Resize, RandomCrop,
        ToTensor and Normalize, one process each
step    a training step as the configuration has it (precision auto, channels_last, memory kept), against
        the same model in fp32 in the default layout, each in a process of its own
data    `make data` from the archive or folder to the table, against images x (decode + resize with
        PIL on one core) / cores
ddp     training steps on two ranks against one, one thread each, the same batch shared out; and the share of
        a step's time that goes into the exchange of gradients
tracking  the records of a short run, every step's, once more into log.jsonl, TensorBoard and tables, against the
        time of the run's epochs; and what its tracking costs once, with the folder for W&B

Without a configuration the images are 200 drawn birds of 500 px; of ddp, random ones of 96 px for ResNet-10-T; of
tracking, the drawn birds at 96 px for ResNet-10-T.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pipeline.common import console, hardware
from pipeline.common.errors import UserError
from pipeline.config.load import load_config
from pipeline.config.schema import Config
from pipeline.data import loader, prepare, sampling
from pipeline.data.loader import Batch
from pipeline.data.transforms import Augmentation
from pipeline.distributed import process_group
from pipeline.distributed.data_parallel import replicate
from pipeline.distributed.process_group import Ranks
from pipeline.models import precision
from pipeline.models.build import build_model, without_weights
from pipeline.runs import trackers
from pipeline.runs.log import CLOCKS, read_log
from pipeline.training import phases, step
from pipeline.training.optimizer import build_optimizer, parameter_groups
from pipeline.training.state import TrainState
from pipeline.training.trainer import train

DRAWN = [
    "data.source=synthetic",
    "data.synthetic={species: 10, images_per_species: 20, train_per_species: 15, long_side_px: 500}",
]
SMALL = ["model.name=resnet10t", "data.image_px=96", "train.precision=fp32"]
RANDOM = ["model.pretrained=false", "optim.batch_size=8", "optim.lr=0.01"]
BENCHES = ("loader", "step", "data", "ddp", "tracking")
ROUNDS = 3
EPOCHS_TRACKED = 4
BATCH = 8
BATCH_OF_RANKS, STEPS_OF_RANKS = 32, 4


def images_per_s(images: int, run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return images / (time.perf_counter() - start)


def compare(name: str, ours: Callable[[], float], theirs: Callable[[], float], against: str) -> None:
    """Run both in turn and print the medians and the pairwise ratios."""
    pairs = [(ours(), theirs()) for _ in range(ROUNDS)]
    mine, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"{name}: {mine:.4g} images/s against {other:.4g} ({against}); ratio {statistics.median(ratios):.2f} "
        f"(lowest {ratios[0]:.2f}, highest {ratios[-1]:.2f} of {ROUNDS} pairs)",
        flush=True,
    )


def bench_loader(config: Config) -> None:
    data, size = prepare.load(config), config.data
    rows = range(len(data.samples))
    labels = data.samples["label"].to_numpy("int64", copy=True)
    images = loader.Images(data.store, labels, Augmentation(size, config.seed))
    server = loader.Loader(images, 0, torch.device("cpu"))
    tensor = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    steps = [transforms.Resize(size.resize_px), transforms.RandomCrop(size.image_px), *tensor]
    folder = datasets.ImageFolder(str(prepare.fetch(size) / "images"), transforms.Compose(steps))
    usual = DataLoader(folder, batch_size=config.optim.images_per_step, shuffle=True)

    def ours() -> float:
        batches = sampling.in_batches(
            sampling.epoch_order(rows, config.seed, 0), config.optim.images_per_step
        )
        return images_per_s(len(rows), lambda: sum(len(batch.label) for batch in server.batches(0, batches)))

    ours()  # the store's pages come into memory; the files' pages did when they were decoded
    theirs = f"ImageFolder + PIL on the same {len(folder)} images"
    compare("loader", ours, lambda: images_per_s(len(folder), lambda: sum(len(y) for _, y in usual)), theirs)


def bench_step(words: list[str], config: Config) -> None:
    """Each side in a process of its own, in turn: ours keeps freed memory, which is for a whole process."""

    def side(name: str) -> float:
        child = [sys.executable, __file__, "step", f"--side={name}", *words]
        done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    label = f"step, {config.model.name} at {config.data.image_px} px, batch {BATCH}"
    compare(label, lambda: side("ours"), lambda: side("plain"), "fp32, default layout, no setting of ours")


def step_side(config: Config, ours: bool) -> float:
    """Images a second over two steps after one to warm up."""
    device = process_group.select_device(config.train) if ours else torch.device("cpu")
    ranks = Ranks.single(device)
    chosen = precision.resolve_precision(config.train.precision if ours else "fp32", device)
    state = fresh_state(config, device, chosen, torch.channels_last if ours else torch.contiguous_format)
    settings = step.StepSettings(0, 0.1, (), None, BATCH, chosen, ranks)
    console.say(f"       {'ours' if ours else 'plain'}: {chosen} on {device.type}")
    take_steps(state, state.model, random_batch(config, BATCH), BATCH, settings, 1)
    return images_per_s(
        2 * BATCH, lambda: take_steps(state, state.model, random_batch(config, BATCH), BATCH, settings, 2)
    )


def fresh_state(
    config: Config, device: torch.device, chosen: precision.Precision, layout: torch.memory_format
) -> TrainState:
    model, _ = build_model(without_weights(config.model), 200)
    model = model.to(device, memory_format=layout)
    groups = parameter_groups(model, config.optim, weight_decay=config.optim.weight_decay)
    phase, begin = config.optim.resolved_phases[0], phases.first(config.optim)
    scaler = torch.amp.GradScaler(device.type, enabled=chosen == "fp16")
    return TrainState(model, build_optimizer(groups, phase, lr=begin.lr), scaler, None, begin)


def random_batch(config: Config, images: int) -> Batch:
    shape = (images, config.data.image_px, config.data.image_px, 3)
    image = torch.randint(256, shape, dtype=torch.uint8).permute(0, 3, 1, 2)
    return Batch(image, torch.arange(images), torch.arange(images))


def take_steps(
    state: TrainState,
    ddp_model: torch.nn.Module,
    batch: Batch,
    images: int,
    settings: step.StepSettings,
    count: int,
) -> None:
    for _ in range(count):
        float(step.train_step(state, ddp_model, batch, images, phases.Rates(1e-3, 0.9), settings)[0])


def bench_ddp(words: list[str], config: Config) -> None:
    """One process and two of torchrun, in turn; the batch of a step is the same, as in a run.

    The exchange's share compares steps of the two ranks with such as exchange nothing, taken by the same
    processes at the same time: what the backward pass hides of it costs nothing and is not counted, as it
    would be in a profile, and what the ranks take from each other otherwise (memory, caches) is on both sides.
    """
    shares: list[float] = []

    def images_of(ranks: int) -> float:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] * (ranks > 1)
        child = [sys.executable, *launcher, __file__, "ddp", "--side=ranks", *words]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        done = subprocess.run(
            child, env=os.environ | one_thread, stdout=subprocess.PIPE, text=True, check=True
        )
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        if ranks > 1:
            shares.append(1 - measured["images_per_s"] / measured["without_exchange"])
        return measured["images_per_s"]

    load, cores = os.getloadavg()[0], os.cpu_count()
    label = (
        f"ddp, {config.model.name} at {config.data.image_px} px, {BATCH_OF_RANKS} images a step, two ranks"
    )
    compare(label, lambda: images_of(2), lambda: images_of(1), "one rank; a ratio of 2 would be perfect")
    shares.sort()
    print(
        f"ddp, exchange: {statistics.median(shares):.0%} of a step's time (lowest {shares[0]:.0%}, highest "
        f"{shares[-1]:.0%} of {len(shares)}); load average {load:.1f} on {cores} cores when it began",
        flush=True,
    )


def ranks_side(config: Config) -> None:
    """Print images a second over all ranks: of steps, and of steps without any exchange."""
    with process_group.join(config.train) as ranks:
        chosen = precision.resolve_precision(config.train.precision, ranks.device)
        own = BATCH_OF_RANKS // ranks.world_size
        batch, alone = random_batch(config, own), Ranks.single(ranks.device)
        with_, without = (fresh_state(config, ranks.device, chosen, torch.channels_last) for _ in range(2))
        ddp_model = replicate(with_.model, config.distributed, ranks)
        settings = step.StepSettings(0, 0.1, (), None, own, chosen, ranks)

        def rate(exchange: bool, steps: int = STEPS_OF_RANKS) -> float:
            ranks.barrier()
            started = time.perf_counter()
            if exchange:
                take_steps(with_, ddp_model, batch, BATCH_OF_RANKS, settings, steps)
            else:
                take_steps(
                    without, without.model, batch, own, dataclasses.replace(settings, ranks=alone), steps
                )
            return BATCH_OF_RANKS * steps / float(max(ranks.all_gather(time.perf_counter() - started)))

        for exchange in (True, False):
            rate(exchange, steps=2)
        pairs = [(rate(True), rate(False)) for _ in range(ROUNDS)]
        rates = [statistics.median(side) for side in zip(*pairs, strict=True)]
        if ranks.is_main:
            print(json.dumps(dict(zip(("images_per_s", "without_exchange"), rates, strict=True))))


def bench_tracking(words: list[str]) -> None:
    """What a run's records cost while it learns is measured by logging them again: it is far less than that by
    which two runs of a kind differ. W&B's folder is made by a process of its own when the run is over."""
    wanted = ["tensorboard=true", "csv=true", "log_every_steps=1"]
    tracked = [*words, *(f"tracking.{one}" for one in wanted), f"train.epochs={EPOCHS_TRACKED}"]
    with tempfile.TemporaryDirectory() as folder:
        config, again = (
            load_config(None, [*tracked, f"run.root={folder}", f"run.name={name}"])
            for name in ("run", "again")
        )
        prepare.prepare(config)
        train(config)
        logged = read_log(config.run_dir / "log.jsonl")
        ends = [record["seconds"] for record in logged if record["kind"] == "epoch"]
        epoch_s = (ends[-1] - ends[0]) / (len(ends) - 1)
        opening_s, logging_s = zip(*(log_again(again, logged) for _ in range(ROUNDS)), strict=True)
        began = time.perf_counter()
        offline = [sys.executable, "-m", "pipeline", "sync", "--offline", str(config.run_dir)]
        subprocess.run(offline, stdout=subprocess.DEVNULL, check=True)
        folder_s = time.perf_counter() - began
    shares = sorted(seconds / len(ends) / epoch_s for seconds in logging_s)
    print(
        f"tracking, {len(logged) // len(ends)} records an epoch: {statistics.median(shares):.2%} of an epoch of "
        f"{epoch_s:.2f} s (lowest {shares[0]:.2%}, highest {shares[-1]:.2%} of {ROUNDS}); once a run: "
        f"{statistics.median(opening_s):.2f} s to open, {folder_s:.1f} s for W&B's folder",
        flush=True,
    )


def log_again(config: Config, logged: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds to open a run's tracking, and to log its records and close it."""
    shutil.rmtree(config.run_dir, ignore_errors=True)
    bare = [{k: v for k, v in record.items() if k not in CLOCKS} for record in logged]
    began = time.perf_counter()
    track = trackers.build_tracker(config, 0)
    opened = time.perf_counter()
    for record in bare:
        track.log(record)
    track.close()
    return opened - began, time.perf_counter() - opened


def bench_data(config: Config) -> None:
    root = prepare.fetch(config.data)
    paths = sorted(root.glob("images/*/*.jpg"))
    target = (config.data.resize_px, config.data.resize_px)
    cores = hardware.cores()

    def one_core() -> float:
        def decode() -> None:
            for path in paths:
                with Image.open(path) as picture:
                    np.asarray(picture.convert("RGB").resize(target, Image.Resampling.BILINEAR))

        return images_per_s(len(paths), decode) * cores

    def stages() -> float:
        with tempfile.TemporaryDirectory(dir=config.data.root) as folder:
            fresh = config.model_copy(update={"data": config.data.model_copy(update={"root": Path(folder)})})
            return images_per_s(len(paths), lambda: prepare.prepare(fresh))

    compare("data, all stages", stages, one_core, f"PIL decode + resize on one core, times {cores} cores")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", choices=["all", *BENCHES], nargs="?", default="all")
    parser.add_argument("--config", type=Path, help="without it: drawn birds, the baseline recipe")
    parser.add_argument("--side", choices=["ours", "plain", "ranks"], help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    overrides = [*([] if arguments.config else DRAWN), *arguments.overrides]
    config = load_config(arguments.config, overrides)
    small = load_config(arguments.config, [*([] if arguments.config else SMALL), *arguments.overrides])
    words = [f"--config={arguments.config}"] if arguments.config else []
    words += arguments.overrides
    if arguments.side == "ranks":
        ranks_side(small)
        return
    if arguments.side:
        print(step_side(config, arguments.side == "ours"))
        return
    if arguments.bench in ("all", "loader", "data"):
        prepare.prepare(config)
    if arguments.bench in ("all", "loader"):
        bench_loader(config)
    if arguments.bench in ("all", "step"):
        bench_step(words, config)
    if arguments.bench in ("all", "ddp"):
        bench_ddp(words, small)
    if arguments.bench in ("all", "tracking"):
        bench_tracking([*DRAWN, *SMALL, *RANDOM, *arguments.overrides])
    if arguments.bench in ("all", "data"):
        console.mute()
        bench_data(config)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        console.fail(str(error))
        raise SystemExit(error.exit_code) from error
