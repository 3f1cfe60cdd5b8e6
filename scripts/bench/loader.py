"""Crops of stored pictures, against torchvision (its decoder, and Pillow) and timm; and what a training waits for them.

Every side makes batches of random crops, mirrored at random, from the same pictures: one process, one thread, one
core. Ours are read from the store, where the data stage has put them. The others decode and resize to the size of the
store each time, as their documentation has it; timm crops before it resizes.
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm.data
import torch
from measuring import ROUNDS, Measurement, Options, images_per_s, in_a_process, in_pairs, of_runs
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from pipeline.common import console, hardware
from pipeline.config.data import DataConfig
from pipeline.config.schema import Config
from pipeline.data import loader, prepare, sampling
from pipeline.data.sources.source import source_of
from pipeline.data.transforms import Augmentation
from pipeline.runs.log import read_log
from pipeline.training.trainer import train

BATCH = 32
EPOCHS_OF_OURS, BATCHES_OF_OTHERS = 10, 12
TINY = "data.synthetic={species: 4, images_per_species: 40, train_per_species: 30, long_side_px: 64}"
TINY_SIZES = ("data.resize_px=64", "data.image_px=48")
RESNET18 = ("model.name=resnet18", "model.pretrained=false", "optim.batch_size=32", "optim.lr=0.01")
Batches = Iterator[Any]


def measure(options: Options) -> Iterator[Measurement]:
    """All sides in turn, each in a process of its own; then a short training."""
    console.mute()
    config = crops_config(options)
    prepare.prepare(config)
    rounds = 1 if options.tiny else ROUNDS
    arguments = {"words": options.overrides, "folder": str(options.folder), "tiny": options.tiny}
    rates = [
        {
            name: in_a_process("loader", {**arguments, "name": name}, threads=1)
            for name in ("ours", *CONTENDERS)
        }
        for _ in range(rounds)
    ]
    what = f"crops of {config.data.image_px} px from pictures of {config.data.resize_px} px, a core"
    for name, (against, goal, _) in CONTENDERS.items():
        paired = pairs(rates, name)
        yield Measurement("loader", what, unit="images/s", against=against, goal=goal, **paired)
    yield waiting(options)


def pairs(rates: list[dict[str, float]], name: str) -> dict[str, Any]:
    """What `in_pairs` makes of ours and another side, which were measured together with the rest."""
    ours, other = (iter([each[side] for each in rates]) for side in ("ours", name))
    return in_pairs(lambda: next(ours), lambda: next(other), len(rates))


def crops_config(options: Options) -> Config:
    """The data of all sides."""
    return options.config(*drawn(options), *(TINY_SIZES if options.tiny else ()))


def drawn(options: Options) -> list[str]:
    """The overrides for drawn pictures, where the bench's own would be too many."""
    return [TINY] if options.tiny and not options.has_data else []


def side(words: list[str], folder: str, tiny: bool, name: str) -> float:
    """Images a second of one side: "ours", or a name of `CONTENDERS`."""
    console.mute()
    config = crops_config(Options(tuple(words), Path(folder), tiny))
    if name == "ours":
        return ours(config)
    images = source_of(config.data).images(prepare.fetch(config.data))
    batches = CONTENDERS[name][2](images, config.data)
    next(batches)
    count = 2 if tiny else BATCHES_OF_OTHERS
    return images_per_s(count * BATCH, lambda: sum(1 for _ in itertools.islice(batches, count)))


def ours(config: Config) -> float:
    """As a training on the CPU has it: no process beside it, and freed memory is kept."""
    hardware.keep_freed_memory()
    data = prepare.load(config)
    images = loader.Images(data.store, data.labels, Augmentation(config.data, config.seed))
    server = loader.Loader(images, 0, torch.device("cpu"))

    def epoch(number: int) -> int:
        order = sampling.epoch_order(range(len(data.samples)), config.seed, number)
        return sum(len(batch.label) for batch in server.batches(number, sampling.in_batches(order, BATCH)))

    epoch(0)  # the store's pages come into memory; the files' pages did when they were decoded
    count = EPOCHS_OF_OURS * len(data.samples)
    return images_per_s(count, lambda: [epoch(1 + number) for number in range(EPOCHS_OF_OURS)])


def stored_size(data: DataConfig) -> int | list[int]:
    """What Resize makes of a picture as the store has it."""
    return [data.resize_px, data.resize_px] if data.resize == "squash" else data.resize_px


def endless(batches: DataLoader[Any]) -> Batches:
    """Epoch after epoch."""
    while True:
        yield from batches


def torchvision_v2(images: Path, data: DataConfig) -> Batches:
    """uint8, without the normalisation: the work of ours, and less than the documented recipe."""
    steps = [
        v2.Resize(stored_size(data), antialias=True),
        v2.RandomCrop(data.image_px),
        v2.RandomHorizontalFlip(),
    ]
    folder = datasets.ImageFolder(
        images, v2.Compose(steps), loader=lambda path: decode_image(path, mode=ImageReadMode.RGB)
    )
    return endless(DataLoader(folder, BATCH, shuffle=True, drop_last=True))


def timm_create_loader(images: Path, data: DataConfig) -> Batches:
    """RandomResizedCrop and mirroring without colour jitter, normalised in a batch."""
    dataset = timm.data.ImageDataset(str(images))
    made: DataLoader[Any] = timm.data.create_loader(
        dataset,
        input_size=(3, data.image_px, data.image_px),
        batch_size=BATCH,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    return endless(made)


def image_folder(images: Path, data: DataConfig) -> Batches:
    """Pillow and normalised floats, as in torchvision's reference training."""
    steps = [
        transforms.Resize(stored_size(data)),
        transforms.RandomCrop(data.image_px),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    folder = datasets.ImageFolder(images, transforms.Compose(steps))
    return endless(DataLoader(folder, BATCH, shuffle=True, drop_last=True))


CONTENDERS: dict[str, tuple[str, float, Callable[[Path, DataConfig], Batches]]] = {
    "torchvision": ("torchvision.io and transforms.v2, uint8", 3, torchvision_v2),
    "timm": ("timm's create_loader", 3, timm_create_loader),
    "pillow": ("torchvision's ImageFolder with Pillow", 10, image_folder),
}
"""what it is, the goal of the ratio, its batches"""


def waiting(options: Options) -> Measurement:
    """The share of a training's epochs that passes in waiting for a batch."""
    of_data = dataclasses.replace(
        options, overrides=tuple(word for word in options.overrides if word.startswith("data."))
    )
    sizes = TINY_SIZES if options.tiny else ("data.resize_px=256", "data.image_px=224")
    epochs = 1 if options.tiny else 3
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        place = (f"run.root={folder}", "run.name=waiting", f"train.epochs={epochs}", "train.device=cpu")
        config = of_data.config(*drawn(options), *sizes, *RESNET18, *place)
        prepare.prepare(config)
        train(config)
        logged = read_log(config.run_dir / "log.jsonl")
    return Measurement(
        part="loader",
        what=f"waiting for batches, in epochs of ResNet-18 at {config.data.image_px} px, {hardware.cores()} cores",
        **of_runs(100 * record["data_wait"] for record in logged if record["kind"] == "epoch"),
        unit="% of the time",
        goal=2,
        better="at most",
    )
