"""What the checks look at: a configuration on the ranks of a machine, its data, its model.

A check leaves here what later ones build on. Where the data are missing, random pictures stand in, as
many and as large as the data set's, so that all that comes after them can be looked at all the same.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from pipeline.common import seeding, tables
from pipeline.config.schema import Config
from pipeline.config.training import DistributedConfig
from pipeline.data import loader, prepare, sample_table, splits
from pipeline.data.image_store import JPEG_QUALITY
from pipeline.data.prepare import Prepared
from pipeline.data.sources import cub200
from pipeline.distributed.process_group import Ranks
from pipeline.models.precision import Precision
from pipeline.training import phases
from pipeline.training.setup import RunStart, TrainingSetup
from pipeline.training.state import TrainState
from pipeline.training.step import StepSettings

SMALL = {"digits": (10, 4_000, 1_000), "mnist": (10, 60_000, 10_000), "cifar10": (10, 50_000, 10_000)}
PICTURES = 8  # different ones, of the stand-in


class CheckContext:
    """One configuration on one rank."""

    data: Prepared
    real: bool
    """whether `data` are the run's own, and no stand-in"""
    job: TrainingSetup
    step: int = 0
    """with which the run would begin: 0, or that of its last checkpoint"""
    pretrained: bool
    """whether the pretrained weights that the configuration asks for are there"""
    state: TrainState
    """as the run has it, with what goes across ranks"""
    own: TrainState
    """the same without anything that goes across ranks; not there in shards"""
    weights: dict[str, Any]
    """where the first weights come from"""
    batch_size: int
    """images computed at once, over all ranks"""
    step_s: float
    """seconds of a step on this rank alone"""
    step_images: int
    """images of that step"""

    def __init__(self, config: Config, ranks: Ranks, precision: Precision, scratch: Path) -> None:
        """scratch: a folder that is gone when the checks are over."""
        self.asked, self.ranks, self.precision, self.scratch = config, ranks, precision, scratch
        self.config = config  # with a stand-in, of that

    @property
    def last_epoch(self) -> int:
        """The epoch with the largest images, and nothing frozen that will ever learn."""
        return self.config.train.epochs - 1

    @property
    def workers(self) -> int:
        """Loader processes of this rank."""
        return loader.worker_count(self.config.data.workers, self.ranks)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        last = self.job.clock.last_step
        return min(last, self.config.train.max_steps or last)

    def how(self, *, alone: bool) -> StepSettings:
        """How a step learns, on all ranks or on this one alone."""
        start = RunStart(self.state, self.weights, self.precision, self.batch_size)
        how = start.step_settings(self.config, self.ranks)
        return dataclasses.replace(how, ranks=self.only_me()) if alone else how

    def only_me(self) -> Ranks:
        """This rank as if it were the only one: nothing is sent."""
        return dataclasses.replace(
            self.ranks, rank=0, world_size=1, local_world_size=1, heartbeat=None, control=None
        )

    def job_of_mine(self) -> TrainingSetup:
        """The job as if this rank were the only one."""
        config = self.config.model_copy(update={"distributed": DistributedConfig()})
        return TrainingSetup(config, self.only_me())

    @property
    def in_shards(self) -> bool:
        """Whether no rank has the whole model."""
        return self.ranks.world_size > 1 and self.config.distributed.shard == "full"

    def trial(self, *, alone: bool) -> TrainState:
        """A state that trial steps may change, of this rank alone or as the run has it."""
        if self.in_shards:  # which cannot be copied
            return self.job.build_state(
                phases.first(self.config.optim), self.precision, pretrained=False
            ).state
        state = self.own if alone else self.state
        model, phase = copy.deepcopy(state.model), copy.deepcopy(state.phase)
        return dataclasses.replace(
            state,
            model=model,
            phase=phase,
            optimizer=self.job.build_optimizer(model, phase),
            scaler=torch.amp.GradScaler(self.ranks.device.type, enabled=self.precision == "fp16"),
            ema=copy.deepcopy(state.ema),
        )


def expected(config: Config) -> tuple[int, int, int]:
    """Classes, official training and test images of the data set."""
    if config.data.source == "synthetic":
        drawn = config.data.synthetic
        train = drawn.species * drawn.train_per_species
        return drawn.species, train, drawn.species * drawn.images_per_species - train
    if config.data.source in SMALL:
        return SMALL[config.data.source]
    return cub200.CLASSES, cub200.IMAGES["train"], cub200.IMAGES["test"]


def stand_in(config: Config, folder: Path) -> Config:
    """Write a sample table and a store of random pictures below `folder`; the configuration that opens them.

    The rows share a few pictures, so that the store is small.
    """
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": folder})})
    samples_path, store_folder = prepare.places(config)
    samples = _random_samples(config)
    side = config.data.resize_px
    height, width = (side, side) if config.data.resize == "squash" else (side, round(side * 4 / 3))
    store_folder.mkdir(parents=True)
    offsets, lengths = [], []
    with (store_folder / "pixels.bin").open("wb") as stream:
        for number in range(PICTURES):
            coarse = seeding.generator("stand-in", number).integers(0, 256, (16, 16, 3), np.uint8)
            picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            if config.data.store == "jpeg":
                picture = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            offsets.append(stream.tell())
            lengths.append(picture.nbytes)
            stream.write(np.ascontiguousarray(picture).data)
    pictures = np.arange(len(samples)) % PICTURES
    index = {
        "id": samples["id"],
        "offset": np.array(offsets)[pictures],
        "length": np.array(lengths)[pictures],
        "store_width": width,
        "store_height": height,
    }
    pd.DataFrame(index).to_csv(store_folder / "index.csv", index=False)
    tables.write_csv(samples, samples_path)
    return config


def _random_samples(config: Config) -> pd.DataFrame:
    classes, train, test = expected(config)
    count = train + test
    label = np.concatenate([np.arange(train), np.arange(test)]) % classes
    samples = pd.DataFrame(
        {
            "id": np.arange(1, count + 1),
            "path": [f"{number}.jpg" for number in range(1, count + 1)],
            "label": label,
            "class_name": [f"class {number}" for number in label],
            "official": ["train"] * train + ["test"] * test,
        }
    )
    samples[["box_x", "box_y", "box_w", "box_h"]] = np.nan
    samples[sample_table.PICTURE_COLUMNS] = [config.data.resize_px, config.data.resize_px, False, 0]
    data = config.data
    return splits.draw(
        samples,
        val_fraction=data.val_fraction,
        folds=data.folds,
        fold=data.fold,
        seed=config.seed,
        sizes=splits.Sizes(data.train_images, data.val_images, data.test_images),
    )[sample_table.COLUMNS]
