"""Checks of the data: are they what was asked for, are crops random, is every image used exactly once."""

from collections.abc import Iterable
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import torch

from pipeline.common.errors import DataError
from pipeline.data import image_store, prepare, sample_table, sampling
from pipeline.data.image_store import Pixels
from pipeline.data.loader import Batch, Images, Loader
from pipeline.data.sources import cub200
from pipeline.data.sources.source import SOURCES
from pipeline.data.transforms import Augmentation
from pipeline.doctor.context import CheckContext, stand_in
from pipeline.doctor.finding import Finding, of_error
from pipeline.inference import predict
from pipeline.training.setup import TrainingSetup

DECODED = 8  # pictures that are decoded and resized once more
SHOWN = 16  # pictures whose crops are compared
LOOKED_AT = 4  # images a rank, and one more, that are predicted and counted


def opened(subject: CheckContext) -> Finding:
    """Open table and store; where that fails on any rank, random pictures stand in on all."""
    config, ranks = subject.config, subject.ranks
    try:
        subject.data = prepare.load(config)
        finding = _described(subject)
    except DataError as error:
        finding = of_error(error)
    subject.real = not ranks.any_rank(finding.state == "no-go")[0]
    if subject.real:
        return finding
    subject.config = stand_in(config, subject.scratch)
    subject.data = prepare.load(subject.config)
    _, train, test = SOURCES[config.data.source].expected(config.data)
    return replace(finding, figures=f"{finding.figures} (below, {train + test:,} random pictures stand in)")


def agreement(subject: CheckContext) -> Finding:
    """Whether all ranks are about to train the same on the same images."""
    subject.job = TrainingSetup(subject.config, subject.ranks)
    if subject.ranks.world_size == 1:
        return Finding("not applicable", "one process")
    return Finding("ok", f"{subject.ranks.world_size} ranks have the same configuration and sample table")


def _described(subject: CheckContext) -> Finding:
    samples, config = subject.data.samples, subject.config
    digest = sample_table.digest(samples)
    counts = {split: int((samples["split"] == split).sum()) for split in sample_table.SPLITS}
    figures = (
        f"{len(samples):,} images of {samples['label'].nunique()} classes: "
        + ", ".join(f"{count:,} {split}" for split, count in counts.items())
        + f"; digest {digest[:12]}"
    )
    numbers = {"images": len(samples), **counts, "digest": digest}
    if not ((samples["split"] == "test") == (samples["official"] == "test")).all():
        return Finding(
            "no-go",
            f"{figures}; test is not the official test split",
            "delete the table and run `make data`",
            numbers,
        )
    root = prepare.find_root(config.data)
    if root is None:
        what_next = "keep the unpacked pictures, or take the store as it is"
        return Finding(
            "warning", f"{figures}; not held against the unpacked pictures, which are gone", what_next
        )
    if outdated := prepare.outdated(config, root):
        return Finding(
            "no-go", f"{figures}; {', '.join(outdated)} made from other inputs", "run `make data`", numbers
        )
    whole = config.data.train_images is None and config.data.test_images is None
    if whole and cub200.is_official(config.data):
        cub200.check_official(samples, root)
        figures += "; as many as published"
    return Finding("ok", figures, numbers=numbers)


def pixels(subject: CheckContext) -> Finding:
    """Pictures of the store against their files, decoded and resized once more."""
    config, data = subject.config, subject.data
    root = prepare.find_root(config.data)
    if root is None:
        return Finding("not applicable", "the unpacked pictures are gone")
    layout = prepare.layout(config.data)
    rows = np.unique(np.linspace(0, len(data.store) - 1, DECODED).astype(int))
    for row in map(int, rows):
        sample = data.samples.iloc[row]
        path = root / "images" / sample["path"]
        if not path.is_file():
            return Finding(
                "warning", f"{path}: missing", "unpack the archive again, or take the store as it is"
            )
        content, _ = image_store.make_entry(path, layout.size(sample["width"], sample["height"]), layout)
        if layout.format == "jpeg":
            content = np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR_RGB), np.uint8)
        if not np.array_equal(content, data.store[row]):
            what_next = f"delete {data.store.folder} and run `make data`"
            return Finding("no-go", f"{path}: the store holds other pixels", what_next)
    return Finding("ok", f"{len(rows)} stored pictures equal their files, decoded and resized again")


# Crops


def crops(subject: CheckContext) -> Finding:
    """The same pictures drawn by two loader processes, in two epochs, and by this process.

    Albumentations 2.0.8 by itself gives every loader process the same random numbers in every epoch.
    """
    data = subject.config.data
    augmentation = Augmentation(data, subject.config.seed)
    rows = np.resize(subject.job.train_rows, SHOWN)[: len(subject.job.train_rows)]
    another_showing = rows + len(subject.job.labels)
    first, second = (_drawn(subject, augmentation, 2, epoch, [rows, another_showing]) for epoch in (0, 1))
    here = _drawn(subject, augmentation, 0, 0, [another_showing, rows])[::-1]
    if not all(np.array_equal(one, other) for one, other in zip(first, here, strict=True)):
        return Finding(
            "no-go",
            "a loader process draws other crops than this process",
            "report this: training would depend on data.workers",
        )
    of_processes, of_epochs = _unlike(first[0], first[1]), _unlike(first[0], second[0])
    figures = (
        f"{of_processes} of {len(rows)} pictures are seen otherwise in another process, {of_epochs} in another epoch; "
        "without processes the same is drawn"
    )
    numbers = {"pictures": len(rows), "unlike_processes": of_processes, "unlike_epochs": of_epochs}
    if of_processes and of_epochs:
        return Finding("ok", figures, numbers=numbers)
    if _random(subject):
        return Finding("no-go", figures, "report this: augmentation repeats itself", numbers)
    what_next = "see data.crop, data.flip and data.resize_px, if you mean to augment"
    return Finding("warning", f"nothing is random in how a picture is seen: {figures}", what_next, numbers)


def _drawn(
    subject: CheckContext, view: Augmentation, workers: int, epoch: int, batches: list[npt.NDArray[np.int64]]
) -> list[Pixels]:
    """uint8 [B, 3, H, W] of each batch; with two processes, each draws one of two batches."""
    images = Images(subject.data.store, subject.job.labels, view)
    served: Iterable[Batch] = Loader(images, workers, torch.device("cpu")).batches(epoch, batches)
    return [batch.image.numpy() for batch in served]


def _unlike(one: Pixels, other: Pixels) -> int:
    if one.shape != other.shape:  # progressive resizing
        return len(one)
    return int((one != other).any(axis=(1, 2, 3)).sum())


def _random(subject: CheckContext) -> bool:
    """Whether the configuration asks for anything that is drawn anew each time."""
    data = subject.config.data
    moves = (
        data.crop == "random_resized"
        or data.image_px < data.resize_px + 2 * data.pad_px
        or data.resize == "short_side"
    )
    changes = data.flip or data.color_jitter > 0 or data.random_erasing > 0 or data.auto_augment != "none"
    return moves or changes


# Every image once


def shares(subject: CheckContext) -> Finding:
    """Every image of an epoch, of validation and of test has to be on exactly one rank, once."""
    job, world = subject.job, subject.ranks.world_size
    everyone = [replace(subject.ranks, rank=rank) for rank in range(world)]
    batches, size = job.epoch_batches(0), subject.config.eval.batch_size
    wanted = {"train": np.concatenate(batches)}
    on_ranks = {"train": [part for ranks in everyone for part in sampling.shard_batches(batches, ranks)]}
    for split in ("val", "test"):
        wanted[split] = np.array(subject.data.rows(split), np.int64)
        looked_at = sampling.in_order(wanted[split], size)
        on_ranks[split] = [
            part for ranks in everyone for part in sampling.distribute_batches(looked_at, ranks)[0]
        ]
    for split, parts in on_ranks.items():
        images = np.concatenate([np.empty(0, np.int64), *parts])
        if not np.array_equal(np.sort(images), np.sort(wanted[split])) or len(np.unique(images)) < len(
            images
        ):
            what_next = "report this: an image would count twice, or not at all"
            return Finding(
                "no-go", f"{split}: {len(images)} images are dealt for {len(wanted[split])}", what_next
            )
    words = [f"{len(images):,} {split}" for split, images in wanted.items()]
    words[0] += f" in {len(batches)} steps"
    if missed := set(job.train_rows) - set(wanted["train"] % len(job.labels)):
        words.append(f"{len(missed)} train images are left out of this epoch by data.sampler")
    return Finding("ok", f"each once, over {world} rank{'s' * (world > 1)}: {', '.join(words)}")


def evaluation(subject: CheckContext) -> Finding:
    """Predict some validation images on all ranks, through the pass that counts them; never test."""
    job, ranks = subject.job, subject.ranks
    split, rows = ("val", job.val_rows) if len(job.val_rows) else ("train", job.train_rows)
    rows = rows[: LOOKED_AT * ranks.world_size + 1]  # uneven, so that a rank that pads would be seen
    looked = predict.predict_rows(
        subject.state.eval_model, job.val_loader, rows, subject.precision, ranks, batch_size=2
    )
    figures = f"{len(rows)} {split} images predicted on {ranks.world_size} rank{'s' * (ranks.world_size > 1)}, each once"
    if not np.isfinite(looked.logits).all():
        what_next = "take another train.precision, or other weights"
        return Finding("no-go", f"{figures}; outputs are not finite", what_next)
    return Finding("ok", f"{figures}; {len(subject.data.rows('test')):,} test images wait, unread")
