"""Speeds as ratios: both sides run in this process, in turn, on the same images.

    python scripts/bench.py all|loader|step|data [--config FILE] [section.key=value ...]

loader  our loader from the store against torchvision's ImageFolder, PIL, Resize, RandomCrop,
        ToTensor and Normalize, one process each
step    ResNet-50 as `train.precision: auto` and channels_last have it, against fp32 in the default layout
data    `make data` from the archive or folder to the table, against images x (decode + resize with
        PIL on one core) / cores

Without a configuration the images are 200 drawn birds of 500 px.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from pipeline import config_file, distributed, engine, optim, terminal
from pipeline.checkpoint import TrainState
from pipeline.config import Config
from pipeline.data import loader, prepare
from pipeline.data.loader import Batch
from pipeline.data.transforms import Augmentation
from pipeline.distributed import Ranks
from pipeline.errors import UserError
from pipeline.models.build import build

DRAWN = [
    "data.source=synthetic",
    "data.synthetic={species: 10, images_per_species: 20, train_per_species: 15, long_side_px: 500}",
]
ROUNDS = 3


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


def bench_loader(config: Config, ranks: Ranks) -> None:
    data, size = prepare.load(config), config.data
    rows = range(len(data.samples))
    labels = data.samples["label"].to_numpy("int64", copy=True)
    images = loader.Images(data.store, labels, Augmentation(size, config.seed), size.image_px)
    server = loader.Loader(images, 0, ranks.device)
    tensor = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    steps = [transforms.Resize(size.resize_px), transforms.RandomCrop(size.image_px), *tensor]
    folder = datasets.ImageFolder(str(prepare.bring(size) / "images"), transforms.Compose(steps))
    usual = DataLoader(folder, batch_size=config.optim.batch_size, shuffle=True)

    def ours() -> float:
        batches = loader.epoch_batches(rows, config.optim.batch_size, config.seed, 0)
        return images_per_s(len(rows), lambda: sum(len(batch.label) for batch in server.serve(0, batches)))

    ours()  # the store's pages come into memory; the files' pages did when they were decoded
    theirs = f"ImageFolder + PIL on the same {len(folder)} images"
    compare("loader", ours, lambda: images_per_s(len(folder), lambda: sum(len(y) for _, y in usual)), theirs)


def bench_step(config: Config, ranks: Ranks, batch_size: int = 8) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, config.data.image_px, config.data.image_px, 3)
    image = torch.randint(256, shape, generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    batch = Batch(image, torch.arange(batch_size), torch.arange(batch_size))
    random = config.model.model_copy(update={"pretrained": False, "weights": None})

    def stepper(layout: torch.memory_format, dtype: torch.dtype) -> Callable[[], float]:
        model, _ = build(random, 200)
        model = model.to(ranks.device, memory_format=layout)  # type: ignore[call-overload]
        groups = optim.parameter_groups(model, model.head, config.optim)
        sgd = optim.sgd(groups, lr=1e-3, momentum=0.9, nesterov=True)
        state = TrainState(model, sgd, torch.amp.GradScaler(ranks.device.type, enabled=False))
        how = engine.Learning(0, 0.1, dtype, ranks)
        step = lambda: float(engine.learn(state, model, batch, batch_size, 1e-3, how)[0])  # noqa: E731
        step()
        return lambda: images_per_s(batch_size, step)

    dtype = engine.precision_on(ranks.device, "auto")
    ours = stepper(torch.channels_last, dtype)
    theirs = stepper(torch.contiguous_format, torch.float32)
    name = f"step, {config.model.name} at {config.data.image_px} px, {dtype} channels_last".replace(
        "torch.", ""
    )
    compare(name, ours, theirs, "fp32, default layout")


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
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    defaults = [] if arguments.config else DRAWN
    config = config_file.load(arguments.config, [*defaults, *arguments.overrides])
    with distributed.ranks(config.train.device) as ranks:
        if arguments.bench in ("all", "loader", "data"):
            prepare.prepare(config)
            terminal.mute()
        if arguments.bench in ("all", "loader"):
            bench_loader(config, ranks)
        if arguments.bench in ("all", "step"):
            bench_step(config, ranks)
        if arguments.bench in ("all", "data"):
            bench_data(config)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        terminal.fail(str(error))
        raise SystemExit(error.exit_code) from error
