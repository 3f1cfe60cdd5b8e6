"""Some images of an evaluation, predicted again with its checkpoint: no accuracy is computed, and no reading counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.common import arrays
from pipeline.common.errors import ConfigError, UserError
from pipeline.config.schema import Config
from pipeline.data.loader import build_loader
from pipeline.data.prepare import Prepared
from pipeline.data.tta import tta_crops
from pipeline.distributed.process_group import Ranks
from pipeline.inference import load_model, predict
from pipeline.inference.load_model import LoadedModel
from pipeline.protocol.claims import Claim
from pipeline.runs import predictions
from pipeline.runs.directory import EvaluationDirectory

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}
"""by other code or packages, or on another machine: of a logit, as a share of the largest"""


@dataclass(frozen=True)
class Again:
    """How to predict again.

    images: how many at least, in whole batches of batch_size, as rounding may depend on the other images of a batch.
    otherwise: what differs here, so that bits may too; empty: the same bits are promised.
    """

    images: int
    batch_size: int
    otherwise: Sequence[str]


class Stored(NamedTuple):
    """Stored outputs: ids int64 [n], logits float32 [n, C]."""

    split: str
    path: Path
    ids: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]


def check(
    config: Config, data: Prepared, folder: EvaluationDirectory, again: Again, ranks: Ranks
) -> list[Claim]:
    """Whether the checkpoint of an evaluation gives the stored logits, those of validation among them.

    Args:
        config: of the evaluation: its checkpoint and views.
    """
    about = f"predictions of {folder.split}"
    if not folder.outputs_file.is_file():
        return [Claim.unchecked(about, f"{folder.outputs_file}: not here")]
    try:
        model = load_model.load_model(config, data.samples, load_model.checkpoint_path(config), ranks)
        return [_claim(config, data, model, stored, again, ranks) for stored in _stored(data, folder)]
    except ConfigError as error:  # of this machine: its memory does not suffice
        return [Claim.unchecked(about, str(error))]
    except UserError as error:
        return [Claim(about, "fails", [str(error)])]


def _stored(data: Prepared, folder: EvaluationDirectory) -> Iterator[Stored]:
    ids, logits = arrays.read_npz(folder.outputs_file, ["id", "logits"], predictions.AGAIN)
    yield Stored(folder.split, folder.outputs_file, ids, logits)
    if folder.validation_file.is_file():
        (logits,) = arrays.read_npz(folder.validation_file, ["logits"], predictions.AGAIN)
        ids = data.samples["id"].to_numpy("int64")[data.rows("val")]
        yield Stored("val", folder.validation_file, ids, logits)


def _claim(
    config: Config, data: Prepared, model: LoadedModel, stored: Stored, again: Again, ranks: Ranks
) -> Claim:
    about = f"predictions of {stored.split}" + (
        " for the temperature" if stored.path.stem == "validation" else ""
    )
    rows = chosen_rows(np.array(data.rows(stored.split), np.int64), again)
    place = {int(image): number for number, image in enumerate(stored.ids)}
    images = data.samples["id"].to_numpy()[rows]
    if len(stored.ids) != len(stored.logits) or any(int(image) not in place for image in images):
        return Claim(
            about, "fails", [f"{stored.path.name}: holds other images than the {stored.split} split"]
        )
    before = stored.logits[[place[int(image)] for image in images]]
    now = _predict(config, data, model, rows, ranks, again.batch_size)
    allowed = TOLERANCE[model.precision] * float(np.abs(before).max()) if again.otherwise else 0.0
    how = "the same bits"
    if again.otherwise:
        how = f"logits within {allowed:.2g}, with other {', '.join(again.otherwise)}"
    return Claim.of(
        about,
        _faults(images, before, now, allowed),
        f"{len(rows):,} of {len(stored.ids):,} images, predicted again with {model.path.name}: {how}",
    )


def chosen_rows(rows: npt.NDArray[np.int64], again: Again) -> npt.NDArray[np.int64]:
    """Whole batches of an evaluation, evenly spread, with at least `again.images` images: int64, rising."""
    starts = range(0, len(rows), again.batch_size)
    count = min(len(starts), -(-again.images // again.batch_size))
    picked = {starts[round(number)] for number in np.linspace(0, len(starts) - 1, count)}
    return np.concatenate([rows[start : start + again.batch_size] for start in sorted(picked)])


def _predict(
    config: Config,
    data: Prepared,
    model: LoadedModel,
    rows: npt.NDArray[np.int64],
    ranks: Ranks,
    batch_size: int,
) -> npt.NDArray[np.float32]:
    views = [
        predict.predict_rows(
            model.network,
            build_loader(data, crop, config.data.workers, ranks),
            rows,
            model.precision,
            ranks,
            batch_size=batch_size,
            features=True,
            progress="predict again",
        )
        for crop in tta_crops(config.data, config.eval.tta)
    ]
    return predict.average_views(views).logits


def _faults(
    images: npt.NDArray[Any], before: npt.NDArray[np.float32], now: npt.NDArray[np.float32], allowed: float
) -> list[str]:
    distance = np.abs(before.astype(np.float64) - now).max(axis=1)
    return [
        f"image {image}: logits differ by up to {distance[number]:.3g}"
        + (
            f", and class {now[number].argmax()} is predicted instead of {before[number].argmax()}"
            if now[number].argmax() != before[number].argmax()
            else ""
        )
        for number, image in enumerate(images)
        if not distance[number] <= allowed
    ]
