"""Speeds as ratios: both sides run in turn, in one go, on the same images.

    python scripts/bench.py all|loader|step|data [--config FILE] [section.key=value ...]

loader  our loader from the store against torchvision's ImageFolder, PIL, Resize, RandomCrop,
        ToTensor and Normalize, one process each
step    a training step as the configuration has it (precision auto, channels_last, memory kept), against
        the same model in fp32 in the default layout, each in a process of its own
data    `make data` from the archive or folder to the table, against images x (decode + resize with
        PIL on one core) / cores

Without a configuration the images are 200 drawn birds of 500 px.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pipeline import config_file, distributed, engine, optim, phases, precision, terminal
from pipeline.checkpoint import TrainState
from pipeline.config import Config
from pipeline.data import loader, prepare
from pipeline.data.loader import Batch
from pipeline.data.transforms import Augmentation
from pipeline.distributed import Ranks
from pipeline.errors import UserError
from pipeline.models.build import build, without_weights

DRAWN = [
    "data.source=synthetic",
    "data.synthetic={species: 10, images_per_species: 20, train_per_species: 15, long_side_px: 500}",
]
ROUNDS = 3
BATCH = 8


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
    folder = datasets.ImageFolder(str(prepare.bring(size) / "images"), transforms.Compose(steps))
    usual = DataLoader(folder, batch_size=config.optim.images_per_step, shuffle=True)

    def ours() -> float:
        batches = loader.in_batches(loader.epoch_order(rows, config.seed, 0), config.optim.images_per_step)
        return images_per_s(len(rows), lambda: sum(len(batch.label) for batch in server.serve(0, batches)))

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
    device = distributed.place(config.train.device) if ours else torch.device("cpu")
    layout = torch.channels_last if ours else torch.contiguous_format
    ranks = Ranks(0, 1, 1, device)
    chosen = precision.resolve(config.train.precision if ours else "fp32", device)
    model, _ = build(without_weights(config.model), 200)
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    groups = optim.parameter_groups(model, config.optim, weight_decay=config.optim.weight_decay)
    phase, begin = config.optim.resolved_phases[0], phases.first(config.optim)
    scaler = torch.amp.GradScaler(device.type, enabled=chosen == "fp16")
    state = TrainState(model, optim.make(groups, phase, lr=begin.lr), scaler, None, begin)
    shape = (BATCH, config.data.image_px, config.data.image_px, 3)
    image = torch.randint(256, shape, dtype=torch.uint8).permute(0, 3, 1, 2)
    batch = Batch(image, torch.arange(BATCH), torch.arange(BATCH))
    how = engine.Learning(0, 0.1, (), None, BATCH, chosen, ranks)
    terminal.say(f"       {'ours' if ours else 'plain'}: {chosen} on {device.type}")

    def steps(count: int) -> None:
        for _ in range(count):
            float(engine.learn(state, model, batch, BATCH, phases.Rates(1e-3, 0.9), how)[0])

    steps(1)
    return images_per_s(2 * BATCH, lambda: steps(2))


def bench_data(config: Config) -> None:
    root = prepare.bring(config.data)
    paths = sorted(root.glob("images/*/*.jpg"))
    target = (config.data.resize_px, config.data.resize_px)
    cores = os.cpu_count() or 1

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
    parser.add_argument("bench", choices=["all", "loader", "step", "data"], nargs="?", default="all")
    parser.add_argument("--config", type=Path, help="without it: drawn birds, the baseline recipe")
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    overrides = [*([] if arguments.config else DRAWN), *arguments.overrides]
    config = config_file.load(arguments.config, overrides)
    if arguments.side:
        print(step_side(config, arguments.side == "ours"))
        return
    if arguments.bench != "step":
        prepare.prepare(config)
    if arguments.bench in ("all", "loader"):
        bench_loader(config)
    if arguments.bench in ("all", "step"):
        words = [f"--config={arguments.config}"] if arguments.config else []
        bench_step([*words, *arguments.overrides], config)
    if arguments.bench in ("all", "data"):
        terminal.mute()
        bench_data(config)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        terminal.fail(str(error))
        raise SystemExit(error.exit_code) from error
