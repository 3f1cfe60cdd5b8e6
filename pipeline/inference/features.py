"""Features of images: the input of the model's last layer, kept in the run directory."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.common import arrays, files
from pipeline.common.errors import CheckpointError, DataError, name_some
from pipeline.config.schema import Config
from pipeline.data import stages
from pipeline.data.loader import build_loader
from pipeline.data.prepare import Prepared
from pipeline.data.transforms import CentreCrop
from pipeline.distributed.process_group import Ranks
from pipeline.inference.predict import Network, predict_rows
from pipeline.models.precision import Precision
from pipeline.runs.directory import RunDirectory

Features = npt.NDArray[np.float32]


def extract_features(
    config: Config,
    data: Prepared,
    model: Network,
    rows: npt.NDArray[np.int64],
    precision: Precision,
    ranks: Ranks,
) -> Features:
    """The pooled features of images in their centre crop, in the order of `rows`: float32 [n, D].

    Args:
        rows: int64 [n], of the sample table, rising.
    """
    loader = build_loader(data, CentreCrop(config.data), config.data.workers, ranks)
    batch_size = config.eval.batch_size
    return predict_rows(
        model, loader, rows, precision, ranks, batch_size=batch_size, features=True, progress="features"
    ).features


def cached(
    config: Config,
    data: Prepared,
    model: Network,
    split: str,
    precision: Precision,
    ranks: Ranks,
    checkpoint: str,
) -> Features:
    """The features of a whole split, float32 [n, D], computed once and kept in the run directory.

    Args:
        split: train, val or test; the rows are `data.rows(split)`.
        checkpoint: digest of the file that the model's weights are from; for another one they are computed again.

    Raises:
        CheckpointError: a feature is not finite.
    """
    path = RunDirectory(config.run_dir).feature_cache(split)
    rows = np.array(data.rows(split), np.int64)
    advice = "name another checkpoint with eval.checkpoint"
    return kept(path, config, data, model, rows, precision, ranks, checkpoint, advice)


def kept(
    path: Path,
    config: Config,
    data: Prepared,
    model: Network,
    rows: npt.NDArray[np.int64],
    precision: Precision,
    ranks: Ranks,
    checkpoint: str,
    advice: str,
) -> Features:
    """The features of rows of the sample table, float32 [n, D], computed once and kept in a file.

    Args:
        path: of the file.
        rows: int64 [n], rising.
        checkpoint: digest of what the features depend on beside the images and their crops.
        advice: what to do where features are not finite.

    Raises:
        CheckpointError: a feature is not finite.
    """
    ids = data.samples["id"].to_numpy()[rows]
    crops = digest_of_crops(config, data)
    stored = read_cache(path, checkpoint, crops, ids)
    if all(ranks.all_gather(stored is not None)) and stored is not None:
        return stored
    features = extract_features(config, data, model, rows, precision, ranks)
    if not (finite := np.isfinite(features).all(axis=1)).all():
        raise CheckpointError(
            f"{config.run_dir}: the features of the model are not finite for image ids {name_some(ids[~finite])}; its "
            f"weights have diverged: {advice}"
        )
    if ranks.is_main:
        source = {"checkpoint": np.array(checkpoint), "crops": np.array(crops)}
        arrays.write_npz(path, {"id": ids, "features": features, **source})
    ranks.barrier()
    return features


def read_cache(path: Path, checkpoint: str | None, crops: str, ids: npt.NDArray[np.int64]) -> Features | None:
    """The stored features, float32 [n, D]; of any checkpoint where that is None.

    None: they are missing or damaged, or of another checkpoint, other images or other crops of them.
    """
    names = ["checkpoint", "crops", "id", "features"]
    try:
        stored_checkpoint, stored_crops, stored_ids, features = arrays.read_npz(path, names)
    except (FileNotFoundError, DataError):
        return None
    is_of_checkpoint = checkpoint is None or str(stored_checkpoint) == checkpoint
    if not is_of_checkpoint or str(stored_crops) != crops or not np.array_equal(stored_ids, ids):
        return None
    is_whole = features.dtype == np.float32 and features.ndim == 2 and len(features) == len(ids)
    return features if is_whole and np.isfinite(features).all() else None


def digest_of_crops(config: Config, data: Prepared) -> str:
    """A digest of what the centre crops of a data set depend on: the stored pictures, and the crop's size."""
    stamp = stages.read_stamp(data.store.folder)
    return files.digest_of([stamp, data.store.folder.name, config.data.image_px, config.data.pad_px])
