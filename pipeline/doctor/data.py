"""Checks of the data: they are what was asked for, crops are random, every image is used exactly once."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from pipeline.common.errors import RUN_DATA, DataError
from pipeline.config.data import DataConfig
from pipeline.data import pictures, prepare, sample_table, sampling, shared_memory, stages
from pipeline.data.loader import Images, Loader
from pipeline.data.pictures import Pixels
from pipeline.data.prepare import Prepared
from pipeline.data.sources import cub200
from pipeline.data.sources.source import source_of
from pipeline.data.transforms import Augmentation
from pipeline.doctor.context import CheckContext
from pipeline.doctor.finding import Finding, of_error, on_main_rank
from pipeline.doctor.products import LoaderProcesses, OwnData, RunData, TriedModel
from pipeline.doctor.stand_in import write_stand_in
from pipeline.inference.predict import predict_rows
from pipeline.training.setup import TrainingSetup

DECODED = 8  # pictures that are decoded and resized once more
COMPARED_CROPS = 16  # pictures
PREDICTED_PER_RANK = 4  # images, and one more in all


def open_data(context: CheckContext) -> tuple[Finding, RunData]:
    """Open table and store; where that fails on any rank, random pictures stand in on all."""
    data = OwnData(context.config)
    try:
        finding = _describe(data)
    except DataError as error:
        finding = of_error(error)
    if not context.ranks.any_rank(finding.state == "no-go")[0]:
        return finding, data
    try:
        stand_in = write_stand_in(context.config, context.scratch)
    except DataError as error:
        return of_error(error), RunData(context.config)  # `agreement` fails to open them, too
    _, train, test = source_of(context.config.data).expected
    figures = f"{finding.figures} (below, {train + test:,} random pictures stand in)"
    return replace(finding, figures=figures), RunData(stand_in)


def agreement(
    context: CheckContext,
    data: RunData,
    workers: LoaderProcesses,  # noqa: ARG001  # the setup checks their room, too
) -> tuple[Finding, TrainingSetup]:
    """Set training up, which raises unless all ranks have the same configuration and sample table."""
    setup = TrainingSetup(data.config, context.ranks)
    if context.ranks.world_size == 1:
        return Finding("not applicable", "one process"), setup
    figures = f"{context.ranks.world_size} ranks have the same configuration and sample table"
    return Finding("ok", figures), setup


def _describe(data: OwnData) -> Finding:
    """Count images and classes, and compare the table with its sources.

    Raises:
        DataError: the data are missing, or CUB's table differs from the published one.
    """
    samples, config = data.prepared.samples, data.config
    digest = sample_table.digest(samples)
    counts = {split: int((samples["split"] == split).sum()) for split in sample_table.SPLITS}
    figures = (
        f"{len(samples):,} images of {samples['label'].nunique()} classes: "
        + ", ".join(f"{count:,} {split}" for split, count in counts.items())
        + f"; digest {digest[:12]}"
    )
    numbers = {"images": len(samples), **counts, "digest": digest}
    drawn = samples["official"] == sample_table.EITHER
    if not (drawn | ((samples["split"] == "test") == (samples["official"] == "test"))).all():
        return Finding(
            "no-go",
            f"{figures}; test is not the official test split",
            RUN_DATA,
            numbers,
        )
    root = prepare.find_root(config.data)
    if root is None:
        what_next = "keep the unpacked pictures, or take the store as it is"
        return Finding(
            "warning", f"{figures}; not compared with the unpacked pictures, which are gone", what_next
        )
    if outdated := prepare.outdated(config, root):
        return Finding("no-go", f"{figures}; out of date: {', '.join(outdated)}", RUN_DATA, numbers)
    whole = config.data.train_images is None and config.data.test_images is None
    if whole and cub200.is_official(config.data):
        cub200.check_official(samples, root)
        figures += "; as many as published"
    if gaps := sample_table.gaps(samples):
        what, _, what_next = gaps[0].partition("; ")
        return Finding("warning", f"{figures}; {what}", what_next, numbers)
    return Finding("ok", figures, numbers=numbers)


def pixels(context: CheckContext, data: OwnData) -> Finding:
    """Compare pictures of the store with their files, decoded and resized once more."""
    config, prepared = context.config, data.prepared
    root = prepare.find_root(config.data)
    if root is None:
        return Finding("not applicable", "the unpacked pictures are gone")
    layout = prepare.layout(config.data)
    rows = np.unique(np.linspace(0, len(prepared.store) - 1, DECODED).astype(int))
    for row in map(int, rows):
        sample = prepared.samples.iloc[row]
        path = source_of(config.data).images(root) / sample["path"]
        if not path.is_file():
            return Finding(
                "warning", f"{path}: missing", "unpack the archive again, or take the store as it is"
            )
        if not np.array_equal(pictures.picture(path, layout), prepared.store[row]):
            what_next = (
                f"run `plumage data --verify`, or, where you changed the picture, rename {prepared.store.folder} "
                f"and {RUN_DATA}"
            )
            return Finding("no-go", f"{path}: the pixels in the store differ", what_next)
    return Finding("ok", f"{len(rows)} stored pictures equal their files, decoded and resized again")


def digests(context: CheckContext, data: OwnData) -> Finding:
    """Compare the digests of the sample table and the store with those recorded when they were made."""

    def look() -> Finding:
        outputs = prepare.output_paths(data.config)
        changed = [f"{path}: {what}" for path in outputs if (what := stages.changes(path, verify=True))]
        if changed:
            return Finding("no-go", "; ".join(changed), "run `plumage data --verify`, which rebuilds it")
        unknown = [path.name for path in outputs if not stages.has_digests(path)]
        if unknown:
            what = f"{' and '.join(unknown)} made by an earlier version, without digests"
            return Finding("warning", what, f"{RUN_DATA}, which rebuilds them")
        return Finding("ok", "sample table and store have the digests recorded when they were made")

    return on_main_rank(look, context.ranks, "the first rank compares digests")[0]


# Crops


def crops(context: CheckContext, data: RunData, setup: TrainingSetup) -> Finding:
    """Draw the same pictures in two loader processes, in two epochs, and in this process.

    Albumentations 2.0.8 by itself gives every loader process the same random numbers in every epoch.
    """
    rows = np.resize(setup.train_rows, COMPARED_CROPS)[: len(setup.train_rows)]
    repeated = rows + len(setup.labels)  # the same pictures, drawn once more in the same epoch
    view = Augmentation(context.config.data, context.config.seed)
    processes = 2 if shared_memory.has_room(4 * len(rows), context.config.data.image_px) else 0
    epoch_0, epoch_1 = (
        draw_crops(data.prepared, view, processes, epoch, [rows, repeated]) for epoch in (0, 1)
    )
    in_this_process = draw_crops(data.prepared, view, 0, 0, [repeated, rows])[::-1]
    if not all(np.array_equal(a, b) for a, b in zip(epoch_0, in_this_process, strict=True)):
        return Finding(
            "no-go",
            "a loader process draws different crops from this process",
            "report this: training would depend on data.workers",
        )
    between_processes = _count_different(epoch_0[0], epoch_0[1])
    between_epochs = _count_different(epoch_0[0], epoch_1[0])
    figures = (
        f"{between_processes} of {len(rows)} pictures look different in another process, "
        f"{between_epochs} in another epoch; without processes the draws are the same"
    )
    numbers = {
        "pictures": len(rows),
        "unlike_processes": between_processes,
        "unlike_epochs": between_epochs,
    }
    if between_processes and between_epochs:
        return Finding("ok", figures, numbers=numbers)
    if _augments(context.config.data):
        return Finding("no-go", figures, "report this: augmentation repeats itself", numbers)
    what_next = "see data.crop, data.flip and data.resize_px, if you mean to augment"
    return Finding("warning", f"nothing is random in how a picture is seen: {figures}", what_next, numbers)


def draw_crops(
    prepared: Prepared, view: Augmentation, workers: int, epoch: int, batches: list[npt.NDArray[np.int64]]
) -> list[Pixels]:
    """uint8 [B, 3, H, W] of each batch; with two processes, each draws one of two batches."""
    images = Images(prepared.store, prepared.labels, view)
    loader = Loader(images, workers, torch.device("cpu"))
    return [batch.image.numpy() for batch in loader.batches(epoch, batches)]


def _count_different(first: Pixels, second: Pixels) -> int:
    if first.shape != second.shape:  # progressive resizing
        return len(first)
    return int((first != second).any(axis=(1, 2, 3)).sum())


def _augments(config: DataConfig) -> bool:
    """Whether a picture is drawn anew each time."""
    moves = (
        config.crop == "random_resized"
        or config.image_px < config.resize_px + 2 * config.pad_px
        or config.resize == "short_side"
    )
    changes = (
        config.flip or config.color_jitter > 0 or config.random_erasing > 0 or config.auto_augment != "none"
    )
    return moves or changes


# Every image once


def shares(context: CheckContext, data: RunData, setup: TrainingSetup) -> Finding:
    """Count the images of an epoch, of validation and of test on all ranks: each has to be on one, once."""
    world = context.ranks.world_size
    all_ranks = [replace(context.ranks, rank=rank) for rank in range(world)]
    train_batches, batch_size = setup.epoch_batches(0), context.config.eval.batch_size
    expected = {"train": np.concatenate(train_batches)}
    shards = {"train": [part for rank in all_ranks for part in sampling.shard_batches(train_batches, rank)]}
    for split in ("val", "test"):
        expected[split] = np.array(data.prepared.rows(split), np.int64)
        batches = sampling.in_order(expected[split], batch_size)
        shards[split] = [part for rank in all_ranks for part in sampling.distribute_batches(batches, rank)[0]]
    for split, parts in shards.items():
        images = np.concatenate([np.empty(0, np.int64), *parts])
        is_complete = np.array_equal(np.sort(images), np.sort(expected[split]))
        if not is_complete or len(np.unique(images)) < len(images):
            return Finding(
                "no-go",
                f"{split}: {len(images)} images are dealt for {len(expected[split])}",
                "report this: an image would count twice, or not at all",
            )
    counts = [f"{len(images):,} {split}" for split, images in expected.items()]
    counts[0] += f" in {len(train_batches)} steps"
    if skipped := set(setup.train_rows) - set(expected["train"] % len(setup.labels)):
        counts.append(f"{len(skipped)} train images are left out of this epoch by data.sampler")
    return Finding("ok", f"each once, over {world} rank{'s' * (world > 1)}: {', '.join(counts)}")


def evaluation(context: CheckContext, data: RunData, setup: TrainingSetup, model: TriedModel) -> Finding:
    """Predict some validation images on all ranks, through the pass that counts them; never test."""
    ranks = context.ranks
    split, rows = ("val", setup.val_rows) if len(setup.val_rows) else ("train", setup.train_rows)
    rows = rows[: PREDICTED_PER_RANK * ranks.world_size + 1]  # uneven, to catch a rank that pads
    eval_model = model.state.eval_model
    predictions = predict_rows(eval_model, setup.val_loader, rows, context.precision, ranks, batch_size=2)
    figures = f"{len(rows)} {split} images predicted on {ranks.world_size} rank{'s' * (ranks.world_size > 1)}, each once"
    if not np.isfinite(predictions.logits).all():
        what_next = "use another train.precision, or other weights"
        return Finding("no-go", f"{figures}; outputs are not finite", what_next)
    return Finding("ok", f"{figures}; {len(data.prepared.rows('test')):,} test images wait, unread")
