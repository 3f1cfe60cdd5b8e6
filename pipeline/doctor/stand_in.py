"""Random pictures instead of missing data, as many and as large, so that later checks can run all the same."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline.common import seeding, tables
from pipeline.config.schema import Config
from pipeline.data import prepare, sample_table, stages
from pipeline.data.pictures import JPEG_QUALITY
from pipeline.data.sources.source import source_of

DIFFERENT_PICTURES = 8


def write_stand_in(config: Config, folder: Path) -> Config:
    """Write a sample table and a store of random pictures below `folder`; return the configuration that opens them.

    The rows share a few pictures, so that the store is small.

    Raises:
        DataError: the configuration asks for more images than the data set has.
    """
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": folder})})
    samples_path, store_folder = prepare.output_paths(config)
    samples = _random_samples(config)
    side = config.data.resize_px
    height, width = (side, side) if config.data.resize == "squash" else (side, round(side * 4 / 3))
    store_folder.mkdir(parents=True)
    offsets, lengths = [], []
    with (store_folder / "pixels.bin").open("wb") as stream:
        for number in range(DIFFERENT_PICTURES):
            coarse = seeding.generator("stand-in", number).integers(0, 256, (16, 16, 3), np.uint8)
            picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            if config.data.store == "jpeg":
                picture = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            offsets.append(stream.tell())
            lengths.append(picture.nbytes)
            stream.write(np.ascontiguousarray(picture).data)
    pictures = np.arange(len(samples)) % DIFFERENT_PICTURES
    index = {
        "id": samples["id"],
        "offset": np.array(offsets)[pictures],
        "length": np.array(lengths)[pictures],
        "store_width": width,
        "store_height": height,
    }
    pd.DataFrame(index).to_csv(store_folder / "index.csv", index=False)
    tables.write_csv(samples, samples_path)
    for output in (samples_path, store_folder):
        stages.stamp_as_it_is(output)
    return config


def _random_samples(config: Config) -> pd.DataFrame:
    classes, train, test = source_of(config.data).expected
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
    return prepare.draw_splits(samples, config)
